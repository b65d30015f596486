"""Rules for a bucket: what our own clean-up can't see. Offered, not required.

Retention deletes checkpoints by itself, from HEAD (`checkpoints.commit.garbage_collection`); a rule that deleted
objects by their age would take the newest checkpoint of a run that pauses. What is left for the bucket: parts of
uploads that were cut off, which no listing shows and which are paid for, and in a bucket with versions what was deleted
or replaced.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from checkpoints.errors import BucketUnusable, UserError
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


def gcs_rules(prefix: str) -> dict[str, Any]:
    """For Google Cloud Storage, as `gcloud storage buckets update --lifecycle-file` reads them."""
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


def describe(url: str) -> str:
    """The rules for a bucket URL as JSON; raises `UserError` where there are none."""
    scheme, _, prefix = _parts(url)
    return json.dumps({"Rules": s3_rules(prefix)} if scheme == "s3" else gcs_rules(prefix), indent=2)


def how_to_apply(url: str) -> str:
    """The command that makes the printed rules those of the bucket."""
    scheme, bucket, _ = _parts(url)
    if scheme == "s3":
        return f"notus-ckpt lifecycle {shlex.quote(url)} --apply"
    return (
        f"(replaces the bucket's other rules: see them with gcloud storage buckets describe gs://{bucket} "
        f"--format='json(lifecycle_config)', and add them to the file)\n"
        f"notus-ckpt lifecycle {shlex.quote(url)} > rules.json && "
        f"gcloud storage buckets update gs://{bucket} --lifecycle-file=rules.json"
    )


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
    scheme, bucket, prefix = _parts(url)
    if scheme != "s3":
        raise UserError("only S3's rules can be set from here", how_to_apply(url))
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


def _parts(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("s3", "gs"):
        raise UserError(f"{url} needs no rules", "only s3:// and gs:// buckets have them")
    prefix = parts.path.strip("/")
    return parts.scheme, parts.netloc, f"{prefix}/" if prefix else ""
