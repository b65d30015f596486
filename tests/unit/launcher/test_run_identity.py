"""What makes a run that run, and what a job of SkyPilot's tells of it."""

from __future__ import annotations

import pytest
import yaml

from launcher.run_identity import RunIdentity, canonical_bucket, run_identity
from launcher.sky.example_tasks import LADDER, shipped_tasks
from launcher.sky.jobs import FOREIGN, UNCLEAR, origin_of
from launcher.sky.render import task_config
from trainer.config.recipe import load_recipe


@pytest.mark.parametrize("url", ["s3://b/x", "s3://b/x/", "S3://b/x", "s3://b//x//", " s3://b/x"])
def test_one_bucket_has_one_spelling(url: str) -> None:
    assert canonical_bucket(url) == "s3://b/x"


def test_what_differs_is_another_run() -> None:
    ours = run_identity("s3://b/x", "r")
    r2 = "https://account.r2.example"
    others = [
        run_identity("s3://b", "r"), run_identity("gs://b/x", "r"), run_identity("s3://b/x", "r2"),
        run_identity("s3://B/x", "r"), run_identity("s3://b/x", "r", r2),
    ]  # fmt: skip
    assert ours not in others
    assert len({ours, *others}) == 6
    assert run_identity("s3://b/x", "r", "https://s3.eu-west-1.amazonaws.com/") == ours, "AWS by its full name"
    assert run_identity("s3://b/x", "r", f"{r2}:443/") == run_identity(
        "s3://b/x", "r", r2.upper().replace("HTTPS", "https")
    )
    assert run_identity("gs://b/x", "r", r2) == RunIdentity("gs://b/x", "", "r"), "S3's endpoint says nothing of GCS"


def ours(bucket: str = "s3://b/x", run: str = "nightly", **more: str) -> str:
    """A task as `notus-launch` submits it, as SkyPilot shows it."""
    config = task_config(load_recipe("tiny-dpo"), LADDER, run=run, bucket=bucket, submission="abc", launch=3)
    config["envs"] |= more
    return yaml.safe_dump_all([{"name": run}, config])


def test_a_job_of_ours_tells_its_run_and_its_submission() -> None:
    told = origin_of(ours(), "/home/me/.venv/bin/notus-launch --cloud gcp")
    assert told == ("run", run_identity("s3://b/x/", "nightly"), "abc")
    there = origin_of(ours(AWS_ENDPOINT_URL="https://r2.example"), "python -m launcher.cli")
    assert there.run == run_identity("s3://b/x", "nightly", "https://r2.example")


@pytest.mark.parametrize(
    ("given", "bucket", "run"),
    [
        ("--env NOTUS_BUCKET=gs://b --env NOTUS_RUN=my-run", "gs://b", "my-run"),
        ("--env=NOTUS_BUCKET=gs://b -y --env=NOTUS_RUN=my-run", "gs://b", "my-run"),
        ("--env NOTUS_BUCKET=gs://b", "gs://b", "notus-7b-dpo"),
        ("--env NOTUS_BUCKET=gs://a --env NOTUS_BUCKET=gs://b --secret HF_TOKEN", "gs://b", "notus-7b-dpo"),
    ],
)
def test_a_job_of_plain_skypilot_tells_by_its_command_line(given: str, bucket: str, run: str) -> None:
    """SkyPilot shows the file as it was, with what `--env` replaced only in the command (tests/integration/test_sky.py)."""
    file = shipped_tasks()["notus-7b-dpo.yaml"]
    assert origin_of(file, f"sky jobs launch sky_tasks/notus-7b-dpo.yaml {given}").run == run_identity(bucket, run)


@pytest.mark.parametrize(
    ("task", "command"),
    [
        (None, "notus-launch"),
        ("", "notus-launch"),
        ("a: [", "notus-launch"),
        (ours(), "sky jobs launch saved.yaml --env-file .env"),
        (ours(), "sky jobs launch saved.yaml --secret-file .env"),
        (ours(), "sky jobs launch saved.yaml --env NOTUS_RUN"),
        (ours(), "sky jobs launch saved.yaml --secret AWS_ENDPOINT_URL=<redacted>"),
        (ours(), "sky jobs launch 'saved.yaml"),
        (ours(), None),
        (shipped_tasks()["notus-7b-dpo.yaml"], "sky jobs launch sky_tasks/notus-7b-dpo.yaml"),
        (ours().replace("NOTUS_SUBMISSION", "OTHER"), "python train_all.py"),
        (f"{ours()}\n---\n{ours(run='second')}", "sky jobs launch pipeline.yaml"),
        ("run: notus-train\nsecrets: {NOTUS_BUCKET: null}", "sky jobs launch t.yaml"),
    ],
)
def test_what_a_job_does_not_tell_is_not_guessed(task: str | None, command: str | None) -> None:
    assert origin_of(task, command) == UNCLEAR


def test_a_job_that_has_nothing_to_do_with_us() -> None:
    assert origin_of("name: nightly\nrun: echo hi\nenvs: {A: b}", "sky jobs launch t.yaml --env A=c") == FOREIGN
