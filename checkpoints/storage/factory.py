"""From a bucket URL to the store behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from checkpoints.errors import UserError
from checkpoints.storage.base import Store
from checkpoints.util.environment import user_path


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
        from checkpoints.storage.filesystem import FolderStore

        return FolderStore(Path(rest), prefix)
    whole = f"{url.rstrip('/')}/{prefix}" if prefix else url
    if scheme == "s3":
        from checkpoints.storage.s3 import open_s3

        return open_s3(whole, environment)
    if scheme == "gs":
        from checkpoints.storage.gcs import open_gcs

        return open_gcs(whole, environment)
    raise UserError(
        f"bucket {url!r} has the unknown scheme {scheme!r}",
        "use s3://bucket/prefix, gs://bucket/prefix or a folder (file:///path)",
    )
