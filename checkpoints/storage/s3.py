"""Amazon S3 and S3-compatible stores (R2, MinIO, ...): `s3://BUCKET/PREFIX`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from checkpoints.errors import AccessDenied, UserError
from checkpoints.storage.lifecycle_rules import s3_rules
from checkpoints.storage.list_prices import AMAZON_S3, CLOUDFLARE_R2, GOOGLE_CLOUD_STORAGE, StoragePrices
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.obstore_client import RETRY, bucket_and_prefix, limits, opening, signing
from checkpoints.storage.s3_location import S3Location, s3_location

AWS = "https://s3.amazonaws.com"
ENDPOINTS = {"amazonaws.com": AMAZON_S3, "amazonaws.com.cn": AMAZON_S3, "storage.googleapis.com": GOOGLE_CLOUD_STORAGE}
"""Suffixes of S3 endpoints with known fees. Any other endpoint counts as a store without egress fees."""
CREDENTIALS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION or a profile (AWS_ENDPOINT_URL for R2 and others)"
KEY_ID, SECRET = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"


class S3:
    """See `checkpoints.storage.backend.Backend`."""

    def open(self, url: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
        bucket, prefix = bucket_and_prefix(url)
        with opening(url, CREDENTIALS):
            small, bulk = _clients(bucket, prefix, os.environ if environment is None else environment)
        return ObjectStore(
            small,
            url,
            bulk=bulk,
            direct=signing(small),
            again=lambda: self.open(url, environment),
            credentials=CREDENTIALS,
        )

    def prices(self, url: str, environment: Mapping[str, str] | None) -> StoragePrices:
        """Prices by endpoint, which may come from this machine's profile unless an `environment` is given."""
        elsewhere = s3_location(environment, profiles=environment is None).endpoint
        host = urlsplit(elsewhere or AWS).hostname or ""
        return next((prices for end, prices in ENDPOINTS.items() if host.endswith(end)), CLOUDFLARE_R2)

    def settings(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        """Region, and the endpoint of R2, MinIO and others. Empty = AWS's own default."""
        region, endpoint = S3Location("", "") if environment is None else s3_location(environment)
        return {"AWS_REGION": region, "AWS_ENDPOINT_URL": endpoint}

    def secret_names(self, clouds: Collection[str]) -> tuple[str, ...]:
        return (KEY_ID, SECRET)

    def secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Found by boto3's rules: this process's environment, a profile, SSO, ..."""
        import boto3

        credentials = boto3.Session().get_credentials()
        if credentials is None:
            raise UserError(
                "no AWS credentials for the bucket",
                "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or set up a profile",
            )
        frozen = credentials.get_frozen_credentials()
        if frozen.token:
            raise UserError(
                "the AWS credentials here are temporary (a session token): the machines would lose the bucket",
                "use the keys of a user that may only read, write, list and delete in this bucket",
            )
        return {KEY_ID: frozen.access_key, SECRET: frozen.secret_key}

    def rules(self, prefix: str) -> Any:
        return {"Rules": s3_rules(prefix)}

    def how_to_apply(self, url: str) -> str:
        return f"notus-ckpt lifecycle {shlex.quote(url)} --apply"


BACKEND = S3()


def _clients(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[S3Store, S3Store]:
    """The bucket's client for small writes and the one for large writes."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
    )
    if session.get_credentials() is None:
        raise AccessDenied(f"no credentials for s3://{bucket}", CREDENTIALS)
    # Signing the payload costs a SHA-256 of every byte: 0.67 instead of 0.21 CPU-s/GB. TLS protects the bytes in
    # transit, and every chunk has its CRC32C. AWS, R2 and MinIO accept unsigned payloads.
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
        # Always set: otherwise obstore would read this process's environment by its own rules, and use an endpoint that
        # should be ignored, or another user's.
        "region": region,
        "aws_endpoint_url_s3": endpoint or f"https://s3.{region}.amazonaws.com",
        "virtual_hosted_style_request": False,
        "credential_provider": Boto3CredentialProvider(session),
        "retry_config": RETRY,
    }
    options: list[Any] = [{**each, **allow_http} for each in limits()]
    small, bulk = (S3Store(bucket, client_options=each, **config) for each in options)
    return small, bulk
