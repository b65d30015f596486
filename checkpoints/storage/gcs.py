"""Google Cloud Storage: `gs://BUCKET/PREFIX`. Never through its S3 interface, which has no conditional writes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from obstore.store import GCSStore

from checkpoints.errors import UserError
from checkpoints.storage.gcs_auth import MachineAccess, credentials
from checkpoints.storage.lifecycle_rules import CUT_OFF_DAYS, OLD_VERSION_DAYS
from checkpoints.storage.list_prices import GOOGLE_CLOUD_STORAGE, StoragePrices
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.obstore_client import RETRY, bucket_and_prefix, limits, opening, signing
from checkpoints.storage.presigned import Request

KEY = "GOOGLE_SERVICE_ACCOUNT_KEY"
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login"


class GoogleCloudStorage:
    """See `checkpoints.storage.backend.Backend`."""

    def open(self, url: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
        bucket, prefix = bucket_and_prefix(url)
        with opening(url, CREDENTIALS):
            small, bulk = _clients(bucket, prefix, environment or {})
            direct = _access(small, bucket, prefix, {**os.environ, **(environment or {})})
        return ObjectStore(
            small,
            url,
            bulk=bulk,
            direct=direct,
            again=lambda: self.open(url, environment),
            compared_by="version",
            credentials=CREDENTIALS,
        )

    def prices(self, url: str, environment: Mapping[str, str] | None) -> StoragePrices:
        return GOOGLE_CLOUD_STORAGE

    def settings(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        return {}

    def secret_names(self, clouds: Collection[str]) -> tuple[str, ...]:
        return () if set(clouds) <= {"gcp"} else (KEY,)  # GCP's machines have an identity of their own

    def secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        path = environment.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        try:
            text = Path(path).read_text() if path and Path(path).is_file() else ""
            if text and json.loads(text).get("type") == "service_account":
                return {KEY: text}
        except (OSError, ValueError):
            pass
        raise UserError(
            "machines outside of GCP need a service account's key to open a gs:// bucket",
            "set GOOGLE_APPLICATION_CREDENTIALS to its JSON file, or use --cloud gcp, or an s3:// bucket",
        )

    def rules(self, prefix: str) -> Any:
        matching = {"matchesPrefix": [prefix]} if prefix else {}
        return {
            "rule": [
                {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": CUT_OFF_DAYS, **matching}},
                {
                    "action": {"type": "Delete"},
                    "condition": {"daysSinceNoncurrentTime": OLD_VERSION_DAYS, "isLive": False, **matching},
                },
            ]
        }

    def how_to_apply(self, url: str) -> str:
        bucket, _ = bucket_and_prefix(url)
        return (
            f"(replaces the bucket's other rules: see them with gcloud storage buckets describe gs://{bucket} "
            f"--format='json(lifecycle_config)', and add them to the file)\n"
            f"notus-ckpt lifecycle {shlex.quote(url)} > rules.json && "
            f"gcloud storage buckets update gs://{bucket} --lifecycle-file=rules.json"
        )


BACKEND = GoogleCloudStorage()


def _clients(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[GCSStore, GCSStore]:
    """The bucket's client for small writes and the one for large writes."""
    key = environment.get(KEY)  # another user's; else whatever this process has
    config: Any = {"service_account_key": key} if key else {}
    # GCS itself always uses https; the key file of a test server names an http:// URL.
    options: list[Any] = [{**each, "allow_http": True} for each in limits()]
    small, bulk = (
        GCSStore(bucket, prefix=prefix or None, retry_config=RETRY, client_options=each, **config) for each in options
    )
    return small, bulk


def _access(
    store: GCSStore, bucket: str, prefix: str, environment: Mapping[str, str]
) -> Callable[[str], Request] | None:
    """How to GET with the credentials that obstore uses; None for a user login, which can't sign here."""
    found = credentials(environment)
    if found is None:
        return MachineAccess(bucket, prefix, environment).request
    return signing(store) if found.get("private_key") and not found.get("disable_oauth") else None
