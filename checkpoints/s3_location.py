"""Where an S3 bucket is, by the rules of AWS's own tools: environment first, then the profile in ~/.aws/config.

One way for everything that has to agree: the store that opens the bucket here, the task that tells machines where it
is, the fees, and the identity of a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from checkpoints.errors import BucketUnusable

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
IGNORE = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"


class S3Location(NamedTuple):
    """Either may be ''."""

    region: str
    endpoint: str
    """Of R2, MinIO and others; '' = AWS."""


def s3_location(environment: Mapping[str, str] | None = None, *, profiles: bool = True) -> S3Location:
    """Region and endpoint for S3.

    `environment`: else this process's. A task file's empty value is none. `profiles`: of this process's user; not for a
    process that works for other people. Raises `BucketUnusable` for a profile that isn't there or can't be read.
    """
    environment = os.environ if environment is None else environment
    region, endpoint = _first(environment, REGIONS), _first(environment, ENDPOINTS)
    ignored = environment.get(IGNORE, "").lower() == "true"
    if profiles and not (region and (endpoint or ignored)):
        written, services = _profile()
        region = region or str(written.get("region", ""))
        ignored = ignored or str(written.get("ignore_configured_endpoint_urls", "")).lower() == "true"
        endpoint = endpoint or str(services.get("endpoint_url") or written.get("endpoint_url") or "")
    return S3Location(region, "" if ignored else endpoint)


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _profile() -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The user's profile, and what it says of S3 alone (`services = NAME`, then `[services NAME] s3 = ...`)."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    session = botocore.session.Session()
    try:
        written = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(written.get("services", ""), {})
    except BotoCoreError as error:
        raise BucketUnusable(
            f"the AWS profile can't be read: {error}", "check AWS_PROFILE, AWS_CONFIG_FILE and ~/.aws/config"
        ) from error
    own = services.get("s3", {}) if isinstance(services, Mapping) else {}
    return written, own if isinstance(own, Mapping) else {}
