"""`notus-launch stop`: the trainer saves and ends, what it saved is verified, and the machine goes back."""

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
from launcher.console import say
from launcher.errors import RunFailed, UnclearJob
from launcher.local.presence import nobody_here
from launcher.report.status import ABANDONED, OVER, RunStatus, read_status
from launcher.run_identity import RunIdentity, identity_here
from launcher.sky import client
from launcher.sky.submission import had_the_run_last

PATIENCE_S = 900.0
"""For a step, a save and its upload; a 7B model's takes a few minutes."""
ANSWER_S = 120.0
"""For a heartbeat that changes: a live trainer writes one every 5 s, and a bucket may hold a request for 2 min."""
POLL_S = 2.0
MAY_LIVE = ("running", "starting", "silent")
"""States that differ by the clock of another machine only."""


def stop_run(bucket: str | None, name: str, *, at_once: bool) -> int:
    """Stop a run; returns the exit code. Raises `RunFailed` where it can't be said to have ended."""
    url = bucket_or_default(bucket)
    store, run = open_run(url, name), identity_here(url, name)
    status = read_status(store, name, datetime.now(UTC))
    if status.state in OVER:
        say(f"run {name} is over already: {status.state}")
        if status.in_cloud:
            _cancel_job(store, run)
        return 0
    if at_once and status.in_cloud:
        say("cancelling the job without saving")
        _end_job(store, run)
    elif not status.in_cloud and not _may_live(store, status):
        ask(store, "stop", 0, "by the user")
        say("the run is not running; if a launcher still tries, it will stop")
    elif not _save_and_end(store, name, SystemClock()):
        if not status.in_cloud:
            say("no trainer answers; if a launcher still tries, it will stop")
            return _say_what_is_saved(store, name)
        say("no trainer answers: cancelling the job")
        _end_job(store, run)
    elif status.in_cloud:
        _cancel_job(store, run)
    return _say_what_is_saved(store, name)


def _may_live(store: Store, status: RunStatus) -> bool:
    """Of a local run: does only a clock say that it doesn't run?"""
    if status.state == ABANDONED:
        return not nobody_here(store, read_head(store), silent=True)
    return status.state in MAY_LIVE


def _say_what_is_saved(store: Store, name: str) -> int:
    head = read_head(store)
    if head is None or not head.commits:
        say("nothing had been saved yet")
        return 0
    step = verify_presence(store, head.commits[0]).step
    say(f"the checkpoint of step {step} is whole (every byte: notus-ckpt verify {store.url})")
    say(f"to go on: launch with --name {name} again")
    return 0


def _save_and_end(store: Store, name: str, clock: Clock) -> bool:
    """Ask the trainer, and wait until it has ended; False = nobody answers.

    Whether one is alive is not judged by the clock of its heartbeat, which isn't ours, but by what it does: a changed
    heartbeat, or its note that it was told to stop. Then it is waited for to the end.
    """
    head, sure = read_head(store), False
    before = {event.id for event in read_events(store)}
    beat = read_heartbeat(store)
    ask(store, "stop", head.epoch if head else 0, "by the user", clock)
    say(f"asked run {name} to save and end (Ctrl-C leaves; it ends all the same)")
    for waited_s in looks(clock, POLL_S, PATIENCE_S):
        news = [event for event in read_events(store) if event.id not in before]
        if ends := [end for _, end in of_kind(news, RunEnd)]:
            say(f"run {name}: {ends[-1].kind} at step {ends[-1].step}")
            return True
        sure = sure or read_heartbeat(store) != beat or bool(of_kind(news, Notice))
        if not sure and waited_s >= ANSWER_S:
            return False
    raise RunFailed(
        f"run {name} has not ended within {PATIENCE_S / 60:.0f} min; it still will, as soon as it looks",
        f"see: notus-launch status {name}; without saving: notus-launch stop {name} --now",
    )


def _end_job(store: Store, run: RunIdentity) -> None:
    """Cancel the job where there is no trainer to ask, and note the end: only where it is known to be one.

    Otherwise the request to stop stays: the strategy looks for it before it asks for a machine, and a trainer while it
    trains.
    """
    name = run.run
    ask(store, "stop", 0, "by the user")
    if not _cancel_job(store, run):
        raise RunFailed(
            f"SkyPilot here can't end the job of run {name}; it will stop by itself as soon as it sees the request",
            "run this again where the run was launched, or watch: notus-launch status",
        )
    saved = read_status(store, name, datetime.now(UTC)).saved_step
    Diary(store, 0, launch=newest_launch_number(store)).write(Stopped(step=saved or 0, reason="by the user"))
    withdraw(store)


def _cancel_job(store: Store, run: RunIdentity) -> bool:
    """Cancel the job if SkyPilot still has one, its machine goes with it; True = there is none that runs on.

    A job that ended here says nothing of a machine that the run got since: another computer launched it.
    """
    try:
        job = client.own_job(run)
        if job is None:
            return False
        if not job.over:
            client.cancel(job.id)
            say(f"cancelled SkyPilot's job {job.id}; its machine is given back")
            return True
        return had_the_run_last(store, job, read_events(store))
    except UnclearJob as error:
        say(f"{error.message}: it is left alone. {error.hint}")
        return False
    except NotusError as error:
        say(f"{error.message}: look with `sky jobs queue` whether the job of {run.run} has ended")
        return False
