"""Client for SkyPilot's API server: submit, query and cancel managed jobs.

The first call imports sky, which takes a second, and may start the local API server, which takes half a minute.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from checkpoints.util.interpreter import PATH, environment
from launcher.errors import SkyFailed, UnclearJob
from launcher.run_identity import RunIdentity
from launcher.sky.jobs import JobOrigin, origin_of

T = TypeVar("T")

logger = logging.getLogger(__name__)

LIGHT_FIELDS = ("job_id", "job_name", "status")
"""Fields queried for all jobs: a task's YAML is about 5 kB, and a shared server has thousands."""
FIELDS = (*LIGHT_FIELDS, "recovery_count", "failure_reason", "details", "end_at", "user_yaml", "entrypoint")
MOST_READ = 200
"""Jobs whose task is read in one query, newest first."""

ENDED = frozenset({"SUCCEEDED", "CANCELLED"})
"""Besides every FAILED_...: see `Job.over`."""


class Job(NamedTuple):
    """A managed job in SkyPilot."""

    id: int
    name: str
    status: str
    recoveries: int
    reason: str
    ended_at: datetime | None = None
    run: RunIdentity | None = None
    """The run it was submitted for; None = not known."""
    submission: str = ""
    """The `notus-launch` submission it came from; '' = not from `notus-launch`."""

    @property
    def over(self) -> bool:
        return is_over(self.status)


def is_over(status: str) -> bool:
    """Has a job of this status ended?"""
    return status in ENDED or status.startswith("FAILED")


class UnknownStrategy(SkyFailed):
    """The API server doesn't have our plugin."""


class NotSubmitted(SkyFailed):
    """A submission without a job number. SkyPilot may have the job anyway: see `launcher.sky.submission`."""

    def __init__(self, message: str, hint: str, request: str) -> None:
        super().__init__(message, hint)
        self.request = request
        """SkyPilot's id of the request that may still be active; '' = not known."""


def submit(config: Mapping[str, Any], secrets: Mapping[str, str]) -> int:
    """Submit a task as a managed job; returns its id.

    Raises `UnknownStrategy`, `SkyFailed` if SkyPilot did not get it, and `NotSubmitted` if it may have. Ctrl-C cancels
    the request as far as SkyPilot can.
    """
    import sky

    plain = {key: value for key, value in config.items() if key != "secrets"}
    task = _call(lambda: sky.Task.from_yaml_config(plain))
    task.update_secrets(dict(secrets))
    try:
        request = _call(lambda: sky.jobs.launch(task, name=config["name"]))
    except SkyFailed as error:
        if isinstance(error.__cause__, OSError):  # a connection error: the request may have arrived
            raise NotSubmitted(error.message, error.hint, "") from error
        raise
    try:
        ids, _ = _call(lambda: sky.stream_and_get(request, output_stream=_quiet()))
    except UnknownStrategy:
        raise
    except SkyFailed as error:
        raise NotSubmitted(error.message, error.hint, str(request)) from error
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # its outcome is queried afterwards
            sky.get(sky.api_cancel(request, silent=True))
        raise
    if not ids:
        raise NotSubmitted("SkyPilot accepted the job but gave it no number", "see: sky jobs queue", str(request))
    return int(ids[0])


def request_state(request: str) -> Literal["over", "under way", "unknown"]:
    """State of a request; "unknown" if the server doesn't report it."""
    import sky

    try:
        (status,) = sky.api_status([request])
    except Exception as error:  # of any kind: "unknown" is a valid answer here
        logger.info("SkyPilot does not report the state of request %s: %s", request, error)
        return "unknown"
    return "over" if _is_done(status) else "under way"


def is_launching() -> bool:
    """Is SkyPilot's server still launching a submitted job? False if it isn't running or doesn't respond."""
    import sky

    try:
        return any("jobs.launch" in request.name and not _is_done(request) for request in sky.api_status())
    except Exception as error:  # of any kind: see `request_state`
        logger.info("SkyPilot does not report its requests: %s", error)
        return False


def _is_done(request: Any) -> bool:
    return request.status in ("SUCCEEDED", "FAILED", "CANCELLED")


def own_job(run: RunIdentity, job_id: int | None = None) -> Job | None:
    """The job of exactly this run, see `find_job`.

    Raises `UnclearJob` if an active job may or may not belong to the run: following or cancelling it would be a guess,
    and a second job would be paid for as well.
    """
    job = find_job(run, job_id)
    if job is None or job.run == run:
        return job
    if job.run is not None or job.over:
        return None
    raise UnclearJob(
        f"SkyPilot's job {job.id} is named {job.name} but doesn't show its bucket and run: it may or may not be {run}",
        f"see: sky jobs queue; if it is this run, end it yourself (sky jobs cancel {job.id}); if not, give this run "
        "another --name",
    )


def find_job(run: RunIdentity, job_id: int | None = None) -> Job | None:
    """The job that was submitted for this run: the active one, else the newest.

    A job is matched by its bucket, endpoint and NOTUS_RUN, never by its name, because plain `sky jobs launch` can use
    any name. An active job of the run's name that can't be matched comes before jobs that are over: see `own_job`.
    `job_id`: consider only this job.
    """
    ids = [job_id] if job_id is not None else _candidates(run)
    if not ids:
        return None
    origins = [(record, origin_of(record.user_yaml, record.entrypoint)) for record in _queue(FIELDS, ids)]
    jobs = [_job(record, one) for record, one in origins if one.kind != "foreign"]
    ours = [job for job in jobs if job.run == run]
    unclear = [job for job in jobs if job.run is None and (job_id is not None or job.name == run.run)]
    for group in ([job for job in ours if not job.over], [job for job in unclear if not job.over], ours):
        if group:
            return max(group, key=lambda job: job.id)
    return None


def _candidates(run: RunIdentity) -> list[int]:
    """Jobs that may be the run's: all of its name, and all that are not over."""
    records = _queue(LIGHT_FIELDS, None)
    ids = {one.job_id for one in records if one.job_name == run.run or not is_over(_status(one))}
    return sorted(ids, reverse=True)[:MOST_READ]


def _queue(fields: Sequence[str], ids: Sequence[int] | None) -> list[Any]:
    import sky

    job_ids = None if ids is None else list(ids)
    answer = _call(
        lambda: _unless_no_controller(sky.jobs.queue_v2(refresh=False, job_ids=job_ids, fields=list(fields)))
    )
    records = answer[0] if isinstance(answer, tuple) else answer
    return [record for record in records if record.job_id is not None]


def _job(record: Any, origin: JobOrigin) -> Job:
    return Job(
        id=record.job_id,
        name=record.job_name,
        status=_status(record),
        recoveries=record.recovery_count or 0,
        reason=record.failure_reason or record.details or "",
        ended_at=datetime.fromtimestamp(record.end_at, UTC) if record.end_at else None,
        run=origin.run,
        submission=origin.submission,
    )


def _status(record: Any) -> str:
    return record.status.value if record.status else ""


def _unless_no_controller(request_id: Any) -> Any:
    """The answer; no records if the controller's VM doesn't exist or is stopped, because then no job is active."""
    import sky

    try:
        return sky.get(request_id)
    except sky.exceptions.ClusterNotUpError as error:
        stopped = error.cluster_status == sky.ClusterStatus.STOPPED
        if stopped or getattr(error.handle, "head_ip", None) is None:  # without an address it is being created
            return []
        raise


def peek(run: RunIdentity) -> Job | None:
    """`own_job` if a server answers at once; None if not, or if the job is unclear. Never starts a server."""
    try:
        from sky.server import common
    except ImportError:
        return None
    try:
        if common.get_api_server_status().status is not common.ApiServerStatus.HEALTHY:
            return None
        return own_job(run)
    except Exception as error:  # optional information: the bucket has what matters
        logger.info("SkyPilot does not report the job: %s", error)
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
    """Call SkyPilot and convert its many exceptions, some rebuilt from the server's JSON, to ours, with their text."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    # Else the API server that SkyPilot may start would load the strategy from a folder `launcher` in the user's cwd.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    if (path := os.environ.pop(PATH, None)) is not None:
        os.environ.update(environment({PATH: path}))
    try:
        return act()
    except Exception as error:
        text = " ".join(str(error).split())[:600] or type(error).__name__
        if "NOTUS" in text and "not a valid" in text:  # SkyPilot raises a bare ValueError with this text
            raise UnknownStrategy(
                "SkyPilot's API server doesn't have the NOTUS strategy",
                "run: notus-launch doctor --fix, then: sky api stop (running jobs survive it)",
            ) from error
        raise SkyFailed(f"SkyPilot: {text}", "check it: notus-launch doctor, or: sky api info") from error


def _quiet() -> Any:
    """A sink for SkyPilot's output, which would otherwise go to our stdout."""
    import io

    return io.StringIO()
