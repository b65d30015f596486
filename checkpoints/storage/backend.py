"""The registry of storage backends, one row each, and the protocol that each one implements.

To add a backend: a module with a `BACKEND`, a row in `BACKENDS`, and its server in tests/contract/test_store.py.
docs/how-to/add-a-storage-backend.md has the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from checkpoints.errors import UserError
from checkpoints.storage.base import Store
from checkpoints.storage.list_prices import StoragePrices
from checkpoints.util.environment import user_path


class Backend(Protocol):
    """One kind of store. `environment` is the user's; None = this process's own."""

    def open(self, url: str, environment: Mapping[str, str] | None) -> Store:
        """Open the store at `url`, without contacting it.

        Raises `UserError`, or `BucketUnusable` if there are no credentials.
        """

    def prices(self, url: str, environment: Mapping[str, str] | None) -> StoragePrices:
        """What keeping, reading and writing costs there."""

    def settings(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        """Variables that give a machine the store's location.

        None of them is secret: they are written to task files. `environment` None = the variables for a task file that
        works for any user.
        """

    def secret_names(self, clouds: Collection[str]) -> tuple[str, ...]:
        """Names of the variables that machines in these clouds need to open it."""

    def secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Their values, from whoever launches. Raises `UserError` if one is missing or wouldn't last for a run."""

    def rules(self, prefix: str) -> Any:
        """Lifecycle rules for what our own clean-up can't see, as JSON; `prefix` ends in '/', or is '' for all."""

    def how_to_apply(self, url: str) -> str:
        """The command that applies the printed rules to the bucket."""


class Row(NamedTuple):
    """Where a backend is defined. Its module is imported on first use: `--help` needs none."""

    scheme: str
    example: str
    module: str


BACKENDS = (
    Row("s3", "s3://BUCKET/PREFIX", "checkpoints.storage.s3"),
    Row("gs", "gs://BUCKET/PREFIX", "checkpoints.storage.gcs"),
    Row("az", "az://ACCOUNT/CONTAINER/PREFIX", "checkpoints.storage.azure"),
)
"""The stores that a machine in any cloud can reach. A folder isn't one: see `checkpoints.storage.filesystem`."""
EXAMPLES = ", ".join(row.example for row in BACKENDS)
SHORT = ", ".join(f"{row.scheme}://..." for row in BACKENDS)
"""For help texts."""


def scheme_of(url: str) -> str:
    """The scheme of a bucket's URL, in lower case; '' for a plain path."""
    scheme, separator, _ = url.strip().partition("://")
    return scheme.lower() if separator else ""


def is_remote(url: str) -> bool:
    """Is this a bucket that machines in a cloud can reach?"""
    scheme, _, rest = url.strip().partition("://")
    return scheme in {row.scheme for row in BACKENDS} and bool(rest.strip("/"))


def backend_of(url: str) -> Backend | None:
    """The backend of a bucket's URL; None for a folder and for an unknown scheme."""
    return next((_backend(row) for row in BACKENDS if row.scheme == scheme_of(url)), None)


def open_store(url: str, prefix: str = "", environment: Mapping[str, str] | None = None) -> Store:
    """Open the store behind a bucket's URL, or the folder `prefix` in it.

    Accepts the URLs of `BACKENDS`, `file:///folder` or a plain path. Credentials come from the environment, by each
    cloud's own rules; a process that serves several users passes each one's `environment` instead. Raises `UserError`
    for an unknown scheme. Contacts nothing yet: see `checkpoints.storage.probe`.
    """
    if not url.strip():
        raise UserError(f"bucket {url!r} is blank", f"give {EXAMPLES} or a folder")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "file", str(user_path(url).absolute())
    if scheme == "file":
        return _folder(url, rest, prefix)
    if (backend := backend_of(url)) is None:
        raise UserError(
            f"bucket {url!r} has the unknown scheme {scheme!r}", f"use {EXAMPLES} or a folder (file:///path)"
        )
    return backend.open(f"{url.rstrip('/')}/{prefix}" if prefix else url, environment)


def _folder(url: str, path: str, prefix: str) -> Store:
    if not path.startswith("/"):
        raise UserError(f"bucket {url!r} names no folder", "write file:///path, or just the path")
    from pathlib import Path

    from checkpoints.storage.filesystem import FolderStore

    return FolderStore(Path(path), prefix)


def _backend(row: Row) -> Backend:
    backend: Backend = import_module(row.module).BACKEND
    return backend
