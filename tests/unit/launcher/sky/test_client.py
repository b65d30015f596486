"""Our client of SkyPilot's API server, with a fake in SkyPilot's place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from launcher.errors import SkyFailed, UnclearJob
from launcher.run_identity import run_identity
from launcher.sky.client import find_job, own_job


class ClusterNotUpError(Exception):
    """As SkyPilot's."""

    def __init__(self, message: str, cluster_status: str | None, handle: Any) -> None:
        super().__init__(message)
        self.cluster_status = cluster_status
        self.handle = handle


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module whose queue is what the test says, or raises it."""
    fake: Any = ModuleType("sky")
    fake.ClusterStatus = SimpleNamespace(STOPPED="STOPPED")
    fake.exceptions = SimpleNamespace(ClusterNotUpError=ClusterNotUpError)
    fake.jobs = SimpleNamespace(queue_v2=lambda **asked: asked)
    fake.asked = []

    def get(asked: Mapping[str, Any]) -> Any:
        fake.asked.append(asked)
        if isinstance(fake.answer, Exception):
            raise fake.answer
        return [one for one in fake.answer if asked["job_ids"] is None or one.job_id in asked["job_ids"]]

    fake.get = get
    monkeypatch.setitem(sys.modules, "sky", fake)
    return fake


def row(
    job_id: int, status: str = "RUNNING", *, name: str = "mine", bucket: str = "s3://b", run: str = "mine",
    command: str = "notus-launch --name mine", yaml: str | None = None,
) -> Any:  # fmt: skip
    """A job as SkyPilot shows it."""
    task = f"name: {name}\n---\nname: {name}\nenvs: {{NOTUS_BUCKET: {bucket}, NOTUS_RUN: {run}, NOTUS_RECIPE: x}}\n"
    return SimpleNamespace(
        job_id=job_id, job_name=name, status=SimpleNamespace(value=status), recovery_count=None,
        failure_reason=None, details=None, end_at=None, user_yaml=task if yaml is None else yaml, entrypoint=command,
    )  # fmt: skip


MINE = run_identity("s3://b/", "mine")


def test_the_newest_job_of_the_run_is_found(sky: Any) -> None:
    sky.answer = [row(1, "FAILED"), row(2, "CANCELLED"), row(4, name="other", run="other")]
    job = find_job(MINE)
    assert job is not None
    assert (job.id, job.status, job.run) == (2, "CANCELLED", MINE)
    sky.answer += [row(3), row(5, "FAILED_SETUP")]
    assert own_job(MINE) == find_job(MINE)
    assert getattr(own_job(MINE), "id", None) == 3, "one that runs comes before a newer one that is over"


def test_a_job_of_another_bucket_is_not_this_runs(sky: Any) -> None:
    sky.answer = [row(7, bucket="s3://a")]
    assert own_job(MINE) is None
    assert own_job(MINE, 7) is None
    assert getattr(own_job(run_identity("s3://a", "mine")), "id", None) == 7


def test_a_job_is_found_by_its_run_whatever_its_name_is(sky: Any) -> None:
    """Plain `sky jobs launch sky_tasks/notus-7b-dpo.yaml --env NOTUS_RUN=mine` names its job by the file."""
    command = "sky jobs launch notus-7b-dpo.yaml --env NOTUS_BUCKET=s3://b --env=NOTUS_RUN=mine"
    sky.answer = [row(7, name="notus-7b-dpo", bucket="null", run="notus-7b-dpo", command=command)]
    assert getattr(own_job(MINE), "id", None) == 7
    assert own_job(run_identity("s3://b", "notus-7b-dpo")) is None, "the command line replaced it"


def test_only_jobs_that_can_be_the_runs_are_read_in_full(sky: Any) -> None:
    sky.answer = [row(1, "SUCCEEDED", name="other", run="other"), row(2, "CANCELLED"), row(3, name="third", run="x")]
    find_job(MINE)
    assert [(asked["job_ids"], "user_yaml" in asked["fields"]) for asked in sky.asked] == [
        (None, False),
        ([3, 2], True),
    ]


def test_a_job_that_does_not_tell_is_never_guessed(sky: Any) -> None:
    sky.answer = [row(7, command="python my_script.py")]
    with pytest.raises(UnclearJob, match="job 7 is named mine") as caught:
        own_job(MINE)
    assert "sky jobs cancel 7" in caught.value.hint
    sky.answer = [row(7, "FAILED", command="python my_script.py"), row(8, name="mine", yaml="run: echo hi")]
    assert own_job(MINE) is None, "one is over, the other has nothing to do with us"
    sky.answer = [row(5, "SUCCEEDED"), row(7, yaml="")]
    with pytest.raises(UnclearJob):
        own_job(MINE)


@pytest.mark.parametrize(
    ("status", "address"),
    [(None, None), ("STOPPED", "10.0.0.1"), ("INIT", None)],
    ids=["none", "stopped", "being made"],
)
def test_a_controllers_vm_that_is_not_there_has_no_job(sky: Any, status: str | None, address: str | None) -> None:
    """The first launch with such a controller asks before there is one."""
    handle = SimpleNamespace(head_ip=address) if address else None
    sky.answer = ClusterNotUpError("No in-progress managed jobs.", status, handle)
    assert find_job(MINE) is None


def test_a_controllers_vm_that_does_not_answer_is_an_error(sky: Any) -> None:
    sky.answer = ClusterNotUpError("Failed to connect", "UP", SimpleNamespace(head_ip="10.0.0.1"))
    with pytest.raises(SkyFailed, match="Failed to connect"):
        find_job(MINE)
