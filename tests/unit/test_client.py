"""Our client of SkyPilot's API server, with a fake in SkyPilot's place."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from launcher.errors import SkyFailed
from launcher.sky.client import find_job


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
    fake.jobs = SimpleNamespace(queue_v2=lambda **_: "request")

    def get(request_id: str) -> Any:
        if isinstance(fake.answer, Exception):
            raise fake.answer
        return fake.answer

    fake.get = get
    monkeypatch.setitem(sys.modules, "sky", fake)
    return fake


def test_the_newest_job_of_the_name_is_found(sky: Any) -> None:
    rows = [(1, "mine", "FAILED"), (3, "mine", "RUNNING"), (2, "mine", "CANCELLED"), (4, "other", "RUNNING")]
    sky.answer = [
        SimpleNamespace(
            job_id=job_id, job_name=name, status=SimpleNamespace(value=status), recovery_count=None,
            failure_reason=None, details=None, end_at=None,
        )
        for job_id, name, status in rows
    ]  # fmt: skip
    job = find_job("mine")
    assert job is not None
    assert (job.id, job.status, job.recoveries) == (3, "RUNNING", 0)


@pytest.mark.parametrize(
    ("status", "address"),
    [(None, None), ("STOPPED", "10.0.0.1"), ("INIT", None)],
    ids=["none", "stopped", "being made"],
)
def test_a_controllers_vm_that_is_not_there_has_no_job(sky: Any, status: str | None, address: str | None) -> None:
    """The first launch with such a controller asks before there is one."""
    handle = SimpleNamespace(head_ip=address) if address else None
    sky.answer = ClusterNotUpError("No in-progress managed jobs.", status, handle)
    assert find_job("mine") is None


def test_a_controllers_vm_that_does_not_answer_is_an_error(sky: Any) -> None:
    sky.answer = ClusterNotUpError("Failed to connect", "UP", SimpleNamespace(head_ip="10.0.0.1"))
    with pytest.raises(SkyFailed, match="Failed to connect"):
        find_job("mine")
