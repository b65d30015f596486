"""The Store contract: what a checkpoint needs of an object store, and nothing else.

One contract test (tests/contract/test_store.py) runs over every implementation.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from checkpoints.environment import user_path
from checkpoints.errors import AlreadyExists, BucketUnusable, Conflict, NotusError, ObjectMissing, UserError
from checkpoints.parallel import parallel_map

Buffer: TypeAlias = bytes | bytearray | memoryview
PIECE_BYTES = 4 << 20
"""Read at once. Smaller pieces would stay in a core's own cache until they are checked, but threads then fight for the
GIL: 256 KiB cost 2.7 times the CPU of raw range GETs, 4 MiB 1.4, 64 MiB 1.6 (make bench, 4 connections)."""

READ_ATTEMPTS = 4
"""Bytes that look wrong so many times are wrong: once may be the network's fault."""

Seen: TypeAlias = Callable[[memoryview], None]


def ignore(piece: memoryview) -> None:
    """Nobody wants to see the pieces."""


class Stored(NamedTuple):
    """The bytes of an object and the token that a compare-and-swap against them needs."""

    data: bytes
    token: str


class Entry(NamedTuple):
    """One object in a listing."""

    key: str
    size_bytes: int


class Store(Protocol):
    """An object store below one URL. Keys are relative and checked by the caller (`names.check_key`).

    Every write is all or nothing: a reader sees the whole object or none, also after a crash. `create` and `swap`
    are linearizable. A write whose reply was lost may have happened: `AlreadyExists` and `Conflict` can name our
    own success, and the caller has to look (see `put_once` and `checkpoints.head`).
    """

    @property
    def url(self) -> str:
        """Where this store is, without secrets, as the user would write it."""

    def afresh(self) -> Store:
        """The same store through new connections."""

    def get(self, key: str) -> Stored:
        """Return the object; raises `ObjectMissing`."""

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        """Return up to `length` bytes from `start`; fewer only at the end. Raises `ObjectMissing`."""

    def read_into(self, key: str, target: memoryview, seen: Seen = ignore) -> int:
        """Fill `target` from the start of the object, as far as it goes.

        Straight into that memory where the store can. `seen` is called with the pieces of `target` in order as they
        arrive: for a checksum on the way. If a piece has to be read
        again, from another connection, the object is read from its start and `seen` gets an empty piece first.

        Returns the object's size; if it is larger than `target`, any number that is larger. Raises `ObjectMissing`.
        """

    def create(self, key: str, data: Buffer) -> str:
        """Write a new object and return its token; raises `AlreadyExists`."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        """Replace the object if its token is still `token`; raises `Conflict`."""

    def put(self, key: str, data: Buffer) -> None:
        """Write the object, replacing what is there."""

    def put_file(self, key: str, path: Path) -> None:
        """Write a local file as an object, replacing what is there, without holding all of it in memory."""

    def list(self, prefix: str) -> Iterable[Entry]:
        """Yield the objects below the folder `prefix` ('' = all), in key order."""

    def folders(self) -> Sequence[str]:
        """Names of the folders at the top, sorted; cheap, however much is in them."""

    def delete(self, key: str) -> None:
        """Remove the object; removing a missing one is fine."""


def open_store(url: str, prefix: str = "", environment: Mapping[str, str] | None = None) -> Store:
    """Open the store behind a bucket URL, or the folder `prefix` in it.

    `s3://bucket/prefix` (also R2, MinIO, ... through AWS_ENDPOINT_URL), `gs://bucket/prefix`, `file:///folder` or a
    plain path. Credentials come from the environment, by boto3's rules for S3 and Google's for GCS; a process that
    works for several users gives each one's `environment` instead. Raises `UserError` for an unknown scheme. Nothing
    is contacted yet: see `probe`.
    """
    if not url.strip():
        raise UserError(f"bucket {url!r} is blank", "give s3://bucket/prefix, gs://bucket/prefix or a folder")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "file", str(user_path(url).absolute())
    if scheme == "file" and not rest.startswith("/"):
        raise UserError(f"bucket {url!r} names no folder", "write file:///path, or the path alone")
    if scheme == "file":
        from checkpoints.folder_store import FolderStore

        return FolderStore(Path(rest), prefix)
    if scheme in ("s3", "gs"):
        from checkpoints.object_store import ObjectStore

        return ObjectStore.open(f"{url.rstrip('/')}/{prefix}" if prefix else url, environment)
    raise UserError(
        f"bucket {url!r} has the unknown scheme {scheme!r}",
        "use s3://bucket/prefix, gs://bucket/prefix or a folder (file:///path)",
    )


def holds(store: Store, key: str, data: Buffer) -> bool:
    """Does the object have these very bytes? Raises `ObjectMissing`."""
    return any(store.get(key).data == data for _ in range(READ_ATTEMPTS))


def exists(store: Store, key: str) -> bool:
    """Is there an object under this key? Reads it: for small ones."""
    try:
        store.get(key)
    except ObjectMissing:
        return False
    return True


def probe(store: Store) -> None:
    """Write, read and delete one small object, so that a wrong bucket fails before it costs money.

    Also asks for writes that must be refused: a store that ignores conditions would let two machines that both believe
    to hold the run overwrite each other.

    Raises `BucketUnusable` with the reason, or `StoreError` where the store does not answer: that may pass.
    """
    key, payload = f"probe-{uuid.uuid4().hex}", os.urandom(16)
    try:
        store.put(key, payload)  # not `create`: a retry that meets its own success is no fault of the bucket
        if not holds(store, key, payload):
            raise BucketUnusable(f"{store.url} gave back other bytes than were written to it")
        try:
            fault = _fault_of_fence(store, key) or _fault_of_races(store, key)
        except NotusError:
            with contextlib.suppress(NotusError):  # the first error is the one to see
                store.delete(key)
            raise
        store.delete(key)
    except ObjectMissing as error:
        raise BucketUnusable(f"{store.url} can't be used: {error.message}", error.hint) from error
    if fault:
        raise BucketUnusable(
            f"{store.url} {fault}, so it can't keep a machine that was given up from overwriting its successor", FENCED
        )


RACERS = 4
"""Writers at once, in the probe."""
FENCED = (
    "use a store with conditional writes: AWS S3, Cloudflare R2, a recent MinIO or SeaweedFS, GCS as gs://, or a folder"
)


def _fault_of_fence(store: Store, key: str) -> str:
    """What is wrong with the conditional writes to an object that is there; '' = nothing."""
    try:
        store.create(key, os.urandom(16))
        return "replaces an object that it was asked to create"
    except AlreadyExists:
        pass
    stale = _swap(store, key)
    if stale is None:
        return "refuses to replace an object by its token"
    try:
        store.swap(key, os.urandom(16), stale)
        return "replaces an object by the token of an older version"
    except Conflict:
        return ""


def _fault_of_races(store: Store, key: str) -> str:
    """What is wrong where several write at once, each on the same condition; '' = nothing. Two may not succeed."""
    place, token = f"{key}-race", store.get(key).token
    created = parallel_map(lambda data: _won(lambda: store.create(place, data)), _payloads(), RACERS)
    there = any(created) or exists(store, place)  # where the winner's reply was lost
    store.delete(place)
    if sum(created) > 1:
        return "lets several create the same object at once"
    if not there:
        return "refuses to create an object under the condition that there is none yet"
    swapped = parallel_map(lambda data: _won(lambda: store.swap(key, data, token)), _payloads(), RACERS)
    return "lets several replace an object by one token at once" if sum(swapped) > 1 else ""


def _payloads() -> list[bytes]:
    return [os.urandom(16) for _ in range(RACERS)]


def _won(write: Callable[[], object]) -> bool:
    try:
        write()
    except (AlreadyExists, Conflict):
        return False
    return True


def _swap(store: Store, key: str) -> str | None:
    """Replace the object by its token, and return the old token; None if the store won't, however often it's asked."""
    for _ in range(READ_ATTEMPTS):  # a late duplicate of an earlier write can change the token under us
        token, data = store.get(key).token, os.urandom(16)
        try:
            store.swap(key, data, token)
            return token
        except Conflict:
            if holds(store, key, data):  # its reply was lost, and the retry met its own success
                return token
    return None
