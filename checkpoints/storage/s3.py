"""Clients for S3 and whatever speaks its protocol (R2, MinIO, ...)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from checkpoints.errors import AccessDenied, UserError
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.obstore_client import CREDENTIALS_HINT, RETRY, bucket_and_prefix, limits, opening, signing
from checkpoints.storage.s3_location import s3_location


def open_s3(url: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
    """Open `s3://bucket/prefix`. `environment`: of another user than this process's own.

    Raises `UserError` for a URL without a bucket, and `BucketUnusable` where there are no credentials.
    """
    bucket, prefix = bucket_and_prefix(url)
    with opening(url):
        small, bulk = _clients(bucket, prefix, os.environ if environment is None else environment)
    return ObjectStore(small, url, bulk=bulk, direct=signing(small), again=lambda: open_s3(url, environment))


def _clients(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[S3Store, S3Store]:
    """The bucket, with the client for small and the one for large writes."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
    )
    if session.get_credentials() is None:
        raise AccessDenied(f"no credentials for s3://{bucket}", CREDENTIALS_HINT)
    # Signing the payload costs a SHA-256 of every byte: 0.67 instead of 0.21 CPU-s/GB. TLS protects the bytes on the
    # way, and every chunk has its CRC32C. AWS, R2 and MinIO take unsigned payloads.
    config: dict[str, Any] = {"unsigned_payload": True}
    region, endpoint = s3_location(environment, profiles=environment is os.environ)
    allow_http = {}
    if endpoint:
        if (urlsplit(endpoint).hostname or "").endswith(".googleapis.com"):
            raise UserError(
                f"s3://{bucket} at {endpoint} is GCS through its S3 interface, which has no compare-and-swap",
                f"write gs://{bucket}, and unset AWS_ENDPOINT_URL",
            )
        if endpoint.startswith("http://"):  # test servers
            allow_http = {"allow_http": True}
    region = region or "us-east-1"
    config |= {
        "prefix": prefix or None,
        # Always: obstore would look into this process's environment by rules of its own, and take an endpoint that is
        # ignored, or another user's.
        "region": region,
        "aws_endpoint_url_s3": endpoint or f"https://s3.{region}.amazonaws.com",
        "virtual_hosted_style_request": False,
        "credential_provider": Boto3CredentialProvider(session),
        "retry_config": RETRY,
    }
    options: list[Any] = [{**each, **allow_http} for each in limits()]
    small, bulk = (S3Store(bucket, client_options=each, **config) for each in options)
    return small, bulk
