"""Where an S3 bucket is, by the rules of AWS's own tools: environment first, then the profile in ~/.aws/config.

Used by everything that has to agree: the store that opens the bucket here, the task that gives machines its location,
the fees, and the identity of a run. If both region variables are set, AWS_REGION wins, as in the AWS CLI and most SDKs;
boto3 reads only AWS_DEFAULT_REGION.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from checkpoints.errors import BucketUnusable

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
IGNORE = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
_HINT = "check AWS_PROFILE, AWS_CONFIG_FILE and ~/.aws/config"


class S3Location(NamedTuple):
    """Region and endpoint; either may be ''."""

    region: str
    endpoint: str
    """For R2, MinIO and others; '' = AWS."""


def s3_location(environment: Mapping[str, str] | None = None, *, profiles: bool = True) -> S3Location:
    """Region and endpoint for S3.

    `environment`: None = this process's. An empty value, as in a task file, counts as unset. `profiles`: also read the
    profiles of this process's user; not for a process that serves other users. Raises `BucketUnusable` if the profile
    or its `services` section is missing, or can't be read.
    """
    environment = os.environ if environment is None else environment
    region, endpoint = _first(environment, REGIONS), _first(environment, ENDPOINTS)
    ignored = _is_true(environment[IGNORE]) if IGNORE in environment else None
    if profiles and not (region and ignored is not None and (endpoint or ignored)):
        written, services = _profile()
        region = region or str(written.get("region", ""))
        if ignored is None:
            ignored = _is_true(written.get("ignore_configured_endpoint_urls", ""))
        if not ignored:
            endpoint = endpoint or _of_s3(written, services) or str(written.get("endpoint_url", ""))
    return S3Location(region, "" if ignored else endpoint)


def _is_true(value: object) -> bool:
    """True only for 'true' in any case, as in botocore."""
    return str(value).lower() == "true"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _profile() -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The user's profile, and the `[services NAME]` sections of its file."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    session = botocore.session.Session()
    try:
        return session.get_scoped_config(), session.full_config.get("services", {})
    except BotoCoreError as error:
        raise BucketUnusable(f"the AWS profile can't be read: {error}", _HINT) from error


def _of_s3(profile: Mapping[str, object], services: Mapping[str, object]) -> str:
    """The endpoint for S3 alone: `services = NAME` in the profile, then `s3 = ...` below `[services NAME]`."""
    name = profile.get("services")
    if name is None:
        return ""
    own = services.get(str(name))
    if not own:
        raise BucketUnusable(f"the AWS profile names the services {name!r}, but there is no [services {name}]", _HINT)
    s3 = own.get("s3") if isinstance(own, Mapping) else None
    return str(s3.get("endpoint_url") or "") if isinstance(s3, Mapping) else ""
