"""The bucket's rules on a real S3 server."""

from __future__ import annotations

from checkpoints.storage.lifecycle_rules import apply
from tests.support.seaweed import S3Server


def test_rules_are_added_once_beside_the_others(s3_environment: S3Server) -> None:
    client = s3_environment.client()
    client.create_bucket(Bucket="with-rules")
    other = {"ID": "theirs", "Filter": {"Prefix": "tmp/"}, "Status": "Enabled", "Expiration": {"Days": 1}}
    client.put_bucket_lifecycle_configuration(Bucket="with-rules", LifecycleConfiguration={"Rules": [other]})
    for _ in range(2):
        assert apply("s3://with-rules/runs") == ["theirs", "notus-launch-runs/"]
    rules = client.get_bucket_lifecycle_configuration(Bucket="with-rules")["Rules"]
    assert [rule["ID"] for rule in rules] == ["theirs", "notus-launch-runs/"]
    assert rules[1]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
