"""`notus-launch stop`: let the trainer save and end, verify what it saved, and release the machine."""

from __future__ import annotations

from datetime import UTC, datetime

from checkpoints.commit.head import read_head
from checkpoints.errors import NotusError
from checkpoints.restore.shard_restore import verify_presence
from checkpoints.run_log.event_kinds import Notice, RunEnd, Stopped
from checkpoints.run_log.event_log import Diary, of_kind, read_events
from checkpoints.run_log.launches import newest_launch_number
from checkpoints.run_log.run_record import open_run, read_heartbeat
from checkpoints.run_log.stop_request import ask, withdraw
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock, looks
from launcher.cli_options import bucket_or_default
from launcher.console import echo
from launcher.errors import RunFailed, UnclearJob
from launcher.local.presence import no_process_here
from launcher.report.status import ABANDONED, OVER, RunStatus, read_status
from launcher.run_identity import RunIdentity, identity_here
from launcher.sky import client
from launcher.sky.submission import ran_last

PATIENCE_S = 900.0
"""Time for a step, a save and its upload; a 7B model's takes a few minutes."""
ANSWER_S = 120.0
"""Time for a changed heartbeat: a live trainer writes one every 5 s, and a bucket may delay a request by 2 min."""
POLL_S = 2.0
MAY_BE_ALIVE = ("running", "starting", "silent")
"""States that differ only by another machine's clock."""


def stop_run(bucket: str | None, name: str, *, at_once: bool) -> int:
    """Stop a run; returns the exit code. Raises `RunFailed` if it can't be confirmed that it has ended."""
    url = bucket_or_default(bucket)
    store, run = open_run(url, name), identity_here(url, name)
    status = read_status(store, name, datetime.now(UTC))
    if status.state in OVER:
        echo(f"run {name} is already over: {status.state}")
        if status.in_cloud:
            _cancel_job(store, run)
        return 0
    if at_once and status.in_cloud:
        echo("cancelling the job without saving")
        _end_job(store, run)
    elif not status.in_cloud and not _may_be_alive(store, status):
        ask(store, "stop", 0, "by the user")
        echo("the run is not active; if a launcher still retries it, it will stop")
    elif not _save_and_end(store, name, SystemClock()):
        if not status.in_cloud:
            echo("no trainer responds; if a launcher still retries it, it will stop")
            return _report_saved_step(store, name)
        echo("no trainer responds: cancelling the job")
        _end_job(store, run)
    elif status.in_cloud:
        _cancel_job(store, run)
    return _report_saved_step(store, name)


def _may_be_alive(store: Store, status: RunStatus) -> bool:
    """Might a local run be alive, apart from what clocks suggest?"""
    if status.state == ABANDONED:
        return not no_process_here(store, read_head(store), silent=True)
    return status.state in MAY_BE_ALIVE


def _report_saved_step(store: Store, name: str) -> int:
    head = read_head(store)
    if head is None or not head.commits:
        echo("nothing was saved yet")
        return 0
    step = verify_presence(store, head.commits[0]).step
    echo(f"the checkpoint of step {step} is complete (to check every byte: notus-ckpt verify {store.url})")
    echo(f"to resume: launch with --name {name} again")
    return 0


def _save_and_end(store: Store, name: str, clock: Clock) -> bool:
    """Request a stop, and wait until the trainer has ended; False = no trainer responds.

    Whether one is alive is not judged by its heartbeat's time, which comes from another clock, but by a changed
    heartbeat, or by its event that it received the request. In that case we wait until it has ended.
    """
    head, alive = read_head(store), False
    before = {event.id for event in read_events(store)}
    beat = read_heartbeat(store)
    ask(store, "stop", head.epoch if head else 0, "by the user", clock)
    echo(f"requested that run {name} save and end (Ctrl-C leaves; it ends anyway)")
    for waited_s in looks(clock, POLL_S, PATIENCE_S):
        news = [event for event in read_events(store) if event.id not in before]
        if ends := [end for _, end in of_kind(news, RunEnd)]:
            echo(f"run {name}: {ends[-1].kind} at step {ends[-1].step}")
            return True
        alive = alive or read_heartbeat(store) != beat or bool(of_kind(news, Notice))
        if not alive and waited_s >= ANSWER_S:
            return False
    raise RunFailed(
        f"run {name} has not ended within {PATIENCE_S / 60:.0f} min; it will as soon as it sees the request",
        f"check with: notus-launch status {name}; to end it without saving: notus-launch stop {name} --now",
    )


def _end_job(store: Store, run: RunIdentity) -> None:
    """Cancel the job if there is no trainer to stop it, and record the end if it is confirmed.

    Otherwise the stop request stays: the strategy checks for it before requesting a machine, and a trainer while it
    trains.
    """
    name = run.run
    ask(store, "stop", 0, "by the user")
    if not _cancel_job(store, run):
        raise RunFailed(
            f"SkyPilot here can't end the job of run {name}; the run will stop as soon as it sees the request",
            f"repeat this where the run was launched, or watch it: notus-launch status {name}",
        )
    saved = read_status(store, name, datetime.now(UTC)).saved_step
    Diary(store, 0, launch=newest_launch_number(store)).write(Stopped(step=saved or 0, reason="by the user"))
    withdraw(store)


def _cancel_job(store: Store, run: RunIdentity) -> bool:
    """Cancel the run's job, which also releases its machine; True = no job is left running.

    A job that ended here does not cover a machine that the run got later from a launch on another computer.
    """
    try:
        job = client.own_job(run)
        if job is None:
            return False
        if not job.over:
            client.cancel(job.id)
            echo(f"cancelled SkyPilot's job {job.id}; its machine is being released")
            return True
        return ran_last(store, job, read_events(store))
    except UnclearJob as error:
        echo(f"{error.message}: left alone. {error.hint}")
        return False
    except NotusError as error:
        echo(f"{error.message}: check with `sky jobs queue` whether the job of {run.run} has ended")
        return False
