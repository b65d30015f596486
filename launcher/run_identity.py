"""What makes a run that run: its bucket, where that bucket is, and its name. Pure, but for `identity_here`.

A name alone doesn't: `nightly` in s3://a and `nightly` in s3://b are two runs, and so are two buckets of one name at
AWS and at another provider. SkyPilot's jobs are told apart by this, see `launcher.sky.jobs`.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from checkpoints.storage.backend import scheme_of
from checkpoints.storage.s3_location import s3_location

AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


class RunIdentity(NamedTuple):
    """Made by `run_identity`, so that two spellings of one place are equal."""

    bucket: str
    endpoint: str
    """Of an S3 bucket that isn't at AWS; else ''."""
    run: str

    def __str__(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"run {self.run} in {self.bucket}{at}"


def run_identity(bucket: str, run: str, endpoint: str = "") -> RunIdentity:
    """The identity of a run; `endpoint` is the configured one of S3, if there is one."""
    url = canonical_bucket(bucket)
    return RunIdentity(url, _canonical_endpoint(endpoint) if scheme_of(url) == "s3" else "", run)


def identity_here(bucket: str, run: str) -> RunIdentity:
    """The identity of a run as this machine reaches its bucket: an endpoint may stand in the user's AWS profile."""
    is_s3 = scheme_of(bucket) == "s3"
    return run_identity(bucket, run, s3_location().endpoint if is_s3 else "")


def canonical_bucket(url: str) -> str:
    """One spelling of a bucket's URL: `s3://b/x/` and `S3://b//x` are `s3://b/x`, as the store reads them."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return url.strip()
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    return f"{scheme.lower()}://{bucket}/{prefix}" if prefix else f"{scheme.lower()}://{bucket}"


def _canonical_endpoint(url: str) -> str:
    """'' for AWS itself, whatever its region is: a bucket's name is unique there."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").lower()
    if not host or host.endswith(AWS_HOSTS):
        return ""
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, default) else f":{parts.port}"
    return f"{parts.scheme.lower()}://{host}{port}{parts.path.rstrip('/')}"
