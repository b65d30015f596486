"""SkyPilot's API server, as far as we ask it: submit a managed job, look at it, cancel it.

The first call imports sky, which takes a second, and may start the local API server, which takes half a minute.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from launcher.errors import SkyFailed

T = TypeVar("T")

logger = logging.getLogger(__name__)

ENDED = frozenset({"SUCCEEDED", "CANCELLED"})
"""And every FAILED_...: see `Job.over`."""


class Job(NamedTuple):
    """A managed job, as SkyPilot sees it."""

    id: int
    name: str
    status: str
    recoveries: int
    reason: str
    ended_at: datetime | None = None

    @property
    def over(self) -> bool:
        return self.status in ENDED or self.status.startswith("FAILED")


class UnknownStrategy(SkyFailed):
    """The API server doesn't have our plugin."""


def submit(config: Mapping[str, Any], secrets: Mapping[str, str]) -> int:
    """Submit a task as a managed job; returns its id. Raises `UnknownStrategy` and `SkyFailed`."""
    import sky

    plain = {key: value for key, value in config.items() if key != "secrets"}
    task = _call(lambda: sky.Task.from_yaml_config(plain))
    task.update_secrets(dict(secrets))
    ids, _ = _call(lambda: sky.stream_and_get(sky.jobs.launch(task, name=config["name"]), output_stream=_quiet()))
    if not ids:
        raise SkyFailed("SkyPilot accepted the job but gave it no number", "look for it: sky jobs queue")
    return int(ids[0])


def find_job(name: str, job_id: int | None = None) -> Job | None:
    """The newest job of this name, or the one with this id."""
    import sky

    fields = ["job_id", "job_name", "status", "recovery_count", "failure_reason", "details", "end_at"]
    ids = None if job_id is None else [job_id]
    answer = _call(lambda: _unless_no_controller(sky.jobs.queue_v2(refresh=False, job_ids=ids, fields=fields)))
    records = answer[0] if isinstance(answer, tuple) else answer
    found = [record for record in records if record.job_name == name and record.job_id is not None]
    if not found:
        return None
    newest = max(found, key=lambda record: record.job_id)
    return Job(
        id=newest.job_id,
        name=name,
        status=newest.status.value if newest.status else "",
        recoveries=newest.recovery_count or 0,
        reason=newest.failure_reason or newest.details or "",
        ended_at=datetime.fromtimestamp(newest.end_at, UTC) if newest.end_at else None,
    )


def _unless_no_controller(request_id: Any) -> Any:
    """The answer; no records where the controller's VM is not there, or stopped: then no job is under way."""
    import sky

    try:
        return sky.get(request_id)
    except sky.exceptions.ClusterNotUpError as error:
        stopped = error.cluster_status == sky.ClusterStatus.STOPPED
        if stopped or getattr(error.handle, "head_ip", None) is None:  # without an address it is just being made
            return []
        raise


def peek(name: str) -> Job | None:
    """`find_job` where a server answers at once; None, and nothing is started, where none does."""
    try:
        from sky.server import common
    except ImportError:
        return None
    try:
        if common.get_api_server_status().status is not common.ApiServerStatus.HEALTHY:
            return None
        return find_job(name)
    except Exception as error:  # a courtesy: the bucket has told what matters
        logger.info("SkyPilot does not say: %s", error)
        return None


def cancel(job_id: int) -> None:
    """Cancel a job; its machine is terminated without a signal (skypilot-facts)."""
    import sky

    _call(lambda: sky.get(sky.jobs.cancel(job_ids=[job_id])))


def dashboard(job_id: int) -> str:
    """The job's page in SkyPilot's dashboard."""
    from sky.server import common

    return str(common.get_dashboard_url(common.get_server_url(), f"jobs/{job_id}"))


def _call(act: Callable[[], T]) -> T:
    """SkyPilot raises many kinds, some made anew from the server's JSON: all become one of ours, with its own words."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    # Else the API server that SkyPilot may start would load the strategy from a folder `launcher` where the user is.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        return act()
    except Exception as error:
        text = " ".join(str(error).split())[:600] or type(error).__name__
        if "NOTUS" in text and "not a valid" in text:  # SkyPilot's text: it raises a bare ValueError for it
            raise UnknownStrategy(
                "SkyPilot's API server doesn't know the NOTUS strategy",
                "run: notus-launch doctor --fix, then: sky api stop (running jobs survive it)",
            ) from error
        raise SkyFailed(f"SkyPilot: {text}", "check it: notus-launch doctor, or: sky api info") from error


def _quiet() -> Any:
    """SkyPilot prints to stdout, which is ours."""
    import io

    return io.StringIO()
