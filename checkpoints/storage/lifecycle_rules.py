"""Rules for a bucket: what our own clean-up can't see. Offered, not required.

Retention deletes checkpoints by itself, from HEAD (`checkpoints.commit.garbage_collection`); a rule that deleted
objects by their age would take the newest checkpoint of a run that pauses. What is left for the bucket: parts of
uploads that were cut off, which no listing shows and which are paid for, and in a bucket with versions what was deleted
or replaced.
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
    """For S3, R2 and others, below `prefix` ('' = the whole bucket)."""
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
    """The rules for a bucket URL as JSON; raises `UserError` where there are none."""
    backend, prefix = _backend(url)
    return json.dumps(backend.rules(prefix), indent=2)


def how_to_apply(url: str) -> str:
    """The command that makes the printed rules those of the bucket."""
    backend, _ = _backend(url)
    return backend.how_to_apply(url)


def merge_rules(existing: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bucket's rules with ours among them; a put replaces all of them, so nobody else's may be forgotten."""
    names = {rule["ID"] for rule in ours}
    return [*(_with_filter(rule) for rule in existing if rule.get("ID") not in names), *ours]


def _with_filter(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule of the old kind, with its prefix outside of a filter: S3 refuses the two kinds beside each other."""
    if "Prefix" not in rule:
        return rule
    return {**{key: value for key, value in rule.items() if key != "Prefix"}, "Filter": {"Prefix": rule["Prefix"]}}


def apply(url: str, client: Any = None) -> list[str]:
    """Add the rules to an S3 bucket, beside those that it has; returns the names of all.

    Raises:
        UserError: not an S3 bucket.
        BucketUnusable: the key may not do this, or there is no such bucket.
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
            f"the key needs {rights}; they aren't needed for a run" if denied else "the rules are as before",
        ) from error
    return [str(rule.get("ID", "without a name")) for rule in rules]


def _client() -> Any:
    """For the place that the store opens, too: boto3 reads one variable for the region less."""
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
    """And the prefix below which its rules hold."""
    backend = backend_of(url)
    if backend is None:
        raise UserError(f"{url} needs no rules", f"only buckets have them: {EXAMPLES}")
    prefix = urlsplit(url).path.strip("/")
    return backend, f"{prefix}/" if prefix else ""
