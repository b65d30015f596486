"""Clients for Google Cloud Storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from obstore.store import GCSStore

from checkpoints.storage.gcs_auth import MachineAccess, credentials
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.obstore_client import RETRY, bucket_and_prefix, limits, opening, signing
from checkpoints.storage.presigned import Request


def open_gcs(url: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
    """Open `gs://bucket/prefix`. `environment`: of another user than this process's own.

    Raises `UserError` for a URL without a bucket, and `BucketUnusable` where its client refuses.
    """
    bucket, prefix = bucket_and_prefix(url)
    with opening(url):
        small, bulk = _clients(bucket, prefix, environment or {})
        direct = _access(small, bucket, prefix, {**os.environ, **(environment or {})})
    return ObjectStore(
        small,
        url,
        bulk=bulk,
        direct=direct,
        again=lambda: open_gcs(url, environment),
        compared_by="version",
    )


def _clients(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[GCSStore, GCSStore]:
    """The bucket, with the client for small and the one for large writes."""
    key = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY")  # of somebody else; else whatever this process has
    config: Any = {"service_account_key": key} if key else {}
    # GCS itself is always asked by https; the key file of a test server names an http:// one.
    options: list[Any] = [{**each, "allow_http": True} for each in limits()]
    small, bulk = (
        GCSStore(bucket, prefix=prefix or None, retry_config=RETRY, client_options=each, **config) for each in options
    )
    return small, bulk


def _access(
    store: GCSStore, bucket: str, prefix: str, environment: Mapping[str, str]
) -> Callable[[str], Request] | None:
    """How to GET with the credentials that obstore uses; None for a person's login, which can't sign here."""
    found = credentials(environment)
    if found is None:
        return MachineAccess(bucket, prefix, environment).request
    return signing(store) if found.get("private_key") and not found.get("disable_oauth") else None
