"""Lifecycle rules for what our own clean-up can't see in a bucket. Optional.

Retention deletes checkpoints by itself, based on HEAD (`checkpoints.commit.garbage_collection`); a rule that deleted
objects by age would remove the newest checkpoint of a run that pauses. What remains for the bucket are the parts of
interrupted uploads, which no listing shows but which are billed, and old versions in a versioned bucket.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from checkpoints.errors import BucketUnusable, UserError
from checkpoints.storage.backend import EXAMPLES, Backend, backend_of, scheme_of
from checkpoints.storage.s3_location import s3_location

CUT_OFF_DAYS = 2
OLD_VERSION_DAYS = 7
_ID = "notus-launch"


def s3_rules(prefix: str) -> list[dict[str, Any]]:
    """The rules for S3, R2 and others, below `prefix` ('' = the whole bucket)."""
    return [
        {
            "ID": f"{_ID}-{prefix or 'bucket'}",
            "Filter": {"Prefix": prefix},
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": CUT_OFF_DAYS},
            "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSION_DAYS},
        }
    ]


def describe(url: str) -> str:
    """The rules for a bucket URL as JSON; raises `UserError` for a URL that isn't a bucket's."""
    backend, prefix = _backend(url)
    return json.dumps(backend.rules(prefix), indent=2)


def how_to_apply(url: str) -> str:
    """The command that applies the printed rules to the bucket."""
    backend, _ = _backend(url)
    return backend.how_to_apply(url)


def merge_rules(existing: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bucket's rules plus ours; a put replaces all rules, so those of others must be included."""
    names = {rule["ID"] for rule in ours}
    return [*(_with_filter(rule) for rule in existing if rule.get("ID") not in names), *ours]


def _with_filter(rule: dict[str, Any]) -> dict[str, Any]:
    """Convert a rule of the old kind, whose prefix is outside a filter: S3 refuses a mix of the two kinds."""
    if "Prefix" not in rule:
        return rule
    return {**{key: value for key, value in rule.items() if key != "Prefix"}, "Filter": {"Prefix": rule["Prefix"]}}


def apply(url: str, client: Any = None) -> list[str]:
    """Add the rules to an S3 bucket, keeping its own; returns the names of all.

    Raises:
        UserError: not an S3 bucket.
        BucketUnusable: the key lacks the permission, or there is no such bucket.
    """
    _, prefix = _backend(url)
    if scheme_of(url) != "s3":
        raise UserError("only S3's rules can be set from here", how_to_apply(url))
    bucket = urlsplit(url).netloc
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = client or _client()
        rules = merge_rules(_existing(client, bucket), s3_rules(prefix))
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    except (ClientError, BotoCoreError) as error:
        denied = isinstance(error, ClientError) and error.response["Error"]["Code"] == "AccessDenied"
        rights = "s3:GetLifecycleConfiguration and s3:PutLifecycleConfiguration"
        raise BucketUnusable(
            f"can't set the rules of s3://{bucket}: {error}",
            f"the key needs {rights}; a run doesn't need them" if denied else "the rules are unchanged",
        ) from error
    return [str(rule.get("ID", "without a name")) for rule in rules]


def _client() -> Any:
    """An S3 client for the same region and endpoint as the store: boto3 alone ignores AWS_REGION."""
    import boto3

    region, endpoint = s3_location()
    return boto3.Session().client("s3", region_name=region or None, endpoint_url=endpoint or None)


def _existing(client: Any, bucket: str) -> list[dict[str, Any]]:
    from botocore.exceptions import ClientError

    try:
        rules: list[dict[str, Any]] = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchLifecycleConfiguration":
            raise
        return []
    return rules


def _backend(url: str) -> tuple[Backend, str]:
    """The URL's backend, and the prefix below which its rules apply."""
    backend = backend_of(url)
    if backend is None:
        raise UserError(f"{url} needs no rules", f"only buckets have them: {EXAMPLES}")
    prefix = urlsplit(url).path.strip("/")
    return backend, f"{prefix}/" if prefix else ""
