"""Where an S3 bucket is, by the rules of AWS's own tools: environment first, then the profile in ~/.aws/config.

One way for everything that has to agree: the store that opens the bucket here, the task that tells machines where it
is, the fees, and the identity of a run. Where the tools disagree it is decided here: with both region variables set,
AWS_REGION counts, as for the AWS CLI and most SDKs; boto3 alone reads AWS_DEFAULT_REGION only.
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
    """Either may be ''."""

    region: str
    endpoint: str
    """Of R2, MinIO and others; '' = AWS."""


def s3_location(environment: Mapping[str, str] | None = None, *, profiles: bool = True) -> S3Location:
    """Region and endpoint for S3.

    `environment`: else this process's. A task file's empty value is none. `profiles`: of this process's user; not for a
    process that works for other people. Raises `BucketUnusable` for a profile that isn't there or can't be read, or
    whose `services` aren't there.
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
    """By botocore's rule: everything else is false."""
    return str(value).lower() == "true"


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _profile() -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The user's profile, and the `[services NAME]` sections of the file that it is in."""
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
        raise BucketUnusable(f"the AWS profile names the services {name!r}, and there is no [services {name}]", _HINT)
    s3 = own.get("s3") if isinstance(own, Mapping) else None
    return str(s3.get("endpoint_url") or "") if isinstance(s3, Mapping) else ""
