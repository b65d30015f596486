"""The identity of a run: its bucket, the bucket's location, and its name. Pure, except for `identity_here`.

A name alone is not enough: `nightly` in s3://a and `nightly` in s3://b are two runs, and a bucket at AWS differs from
one of the same name at another provider. SkyPilot jobs are matched to runs by identity, see `launcher.sky.jobs`.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from checkpoints.storage.backend import scheme_of
from checkpoints.storage.s3_location import s3_location

AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


class RunIdentity(NamedTuple):
    """Create with `run_identity`, so that two spellings of one location are equal."""

    bucket: str
    endpoint: str
    """Endpoint of an S3 bucket that isn't at AWS; else ''."""
    run: str

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"run {self.run} in {self.bucket}{at}"


def run_identity(bucket: str, run: str, endpoint: str = "") -> RunIdentity:
    """The identity of a run; `endpoint` is the configured S3 endpoint, if there is one."""
    url = canonical_bucket(bucket)
    return RunIdentity(url, _canonical_endpoint(endpoint) if scheme_of(url) == "s3" else "", run)


def identity_here(bucket: str, run: str) -> RunIdentity:
    """The identity of a run as seen from this machine: the endpoint may come from the user's AWS profile."""
    is_s3 = scheme_of(bucket) == "s3"
    return run_identity(bucket, run, s3_location().endpoint if is_s3 else "")


def canonical_bucket(url: str) -> str:
    """Normalize a bucket's URL: `s3://b/x/` and `S3://b//x` become `s3://b/x`, as the store reads them."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return url.strip()
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    return f"{scheme.lower()}://{bucket}/{prefix}" if prefix else f"{scheme.lower()}://{bucket}"


def _canonical_endpoint(url: str) -> str:
    """Normalize an endpoint; '' for AWS itself in any region, because bucket names are unique there."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    if not host or host.endswith(AWS_HOSTS):
        return ""
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme.lower()}://{host}{port}{parts.path.rstrip('/')}"
