"""Bucket rules: nobody else's are lost, and none of ours could delete a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from checkpoints.errors import BucketUnusable, UserError
from checkpoints.storage import gcs
from checkpoints.storage.lifecycle_rules import apply, describe, how_to_apply, merge_rules, s3_rules

OTHER = {"ID": "theirs", "Filter": {"Prefix": "tmp/"}, "Status": "Enabled", "Expiration": {"Days": 1}}


def test_no_rule_deletes_a_live_object() -> None:
    (rule,) = s3_rules("runs/")
    assert "Expiration" not in rule
    assert rule["Filter"] == {"Prefix": "runs/"}
    for rule in gcs.BACKEND.rules("runs/")["rule"]:
        assert rule["action"]["type"] == "AbortIncompleteMultipartUpload" or rule["condition"]["isLive"] is False
        assert rule["condition"]["matchesPrefix"] == ["runs/"]


def test_rules_of_others_stay_and_ours_are_replaced() -> None:
    old = {**s3_rules("runs/")[0], "Status": "Disabled"}
    merged = merge_rules([OTHER, old], s3_rules("runs/"))
    assert merged == [OTHER, *s3_rules("runs/")]
    assert merge_rules(merged, s3_rules("other/")) == [*merged, *s3_rules("other/")]
    old_kind = {"ID": "theirs", "Prefix": "tmp/", "Status": "Enabled", "Expiration": {"Days": 1}}
    assert merge_rules([old_kind], s3_rules("runs/")) == [OTHER, *s3_rules("runs/")]


@pytest.fixture
def stub() -> Iterator[Stubber]:
    """botocore's own: checks every request against S3's model."""
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    with Stubber(client) as made:
        yield made


@pytest.mark.parametrize("existing", [[OTHER], []])
def test_apply(stub: Stubber, existing: list[dict[str, Any]]) -> None:
    if existing:
        stub.add_response("get_bucket_lifecycle_configuration", {"Rules": existing}, {"Bucket": "b"})
    else:
        stub.add_client_error("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")
    wanted = {"Bucket": "b", "LifecycleConfiguration": {"Rules": [*existing, *s3_rules("runs/")]}}
    stub.add_response("put_bucket_lifecycle_configuration", {}, wanted)
    assert apply("s3://b/runs", stub.client) == [*(rule["ID"] for rule in existing), "notus-launch-runs/"]
    stub.assert_no_pending_responses()


def test_without_the_right(stub: Stubber) -> None:
    stub.add_client_error("get_bucket_lifecycle_configuration", "AccessDenied")
    with pytest.raises(BucketUnusable, match="AccessDenied") as caught:
        apply("s3://b", stub.client)
    assert "s3:PutLifecycleConfiguration" in caught.value.hint


def test_other_buckets_are_told_how() -> None:
    assert json.loads(describe("gs://b"))["rule"][0]["condition"] == {"age": 2}
    with pytest.raises(UserError) as caught:
        apply("gs://b")
    assert "gcloud storage buckets update gs://b" in caught.value.hint
    assert how_to_apply("s3://b/a b") == "notus-ckpt lifecycle 's3://b/a b' --apply"
    with pytest.raises(UserError, match="needs no rules"):
        describe("/tmp/bucket")
