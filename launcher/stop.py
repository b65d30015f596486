"""`notus-launch stop`: the trainer saves and ends, what it saved is verified, and the machine goes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from checkpoints.clock import Clock, SystemClock
from checkpoints.errors import NotusError
from checkpoints.event_kinds import Notice, RunEnd, Stopped
from checkpoints.events import Diary, of_kind, read_events
from checkpoints.head import read_head
from checkpoints.requests import ask, withdraw
from checkpoints.restore import verify_presence
from checkpoints.run import open_run, read_heartbeat
from checkpoints.store import Store
from launcher.errors import RunFailed
from launcher.launch import say
from launcher.options import default_bucket
from launcher.policy.history import began_since
from launcher.report.status import OVER, read_status
from launcher.sky import client

PATIENCE_S = 900.0
"""For a step, a save and its upload; a 7B model's takes a few minutes."""
ANSWER_S = 60.0
"""For a heartbeat that changes: a live trainer writes one every 5 s."""
POLL_S = 2.0


def stop_run(bucket: str | None, name: str, *, at_once: bool) -> int:
    """Stop a run; returns the exit code. Raises `RunFailed` where it can't be said to have ended."""
    store = open_run(bucket or default_bucket(), name)
    status = read_status(store, name, datetime.now(UTC))
    if status.state in OVER:
        say(f"run {name} is over already: {status.state}")
        if status.in_cloud:
            _cancel_job(store, name)
        return 0
    if at_once and status.in_cloud:
        say("cancelling the job without saving")
        _end_job(store, name)
    elif not status.in_cloud and status.state != "running":
        ask(store, "stop", 0, "by the user")
        say("the run is not running; if a launcher still tries, it will stop")
    elif not _save_and_end(store, name, SystemClock(), sure=status.state == "running"):
        say("no trainer answers: cancelling the job")
        _end_job(store, name)
    elif status.in_cloud:
        _cancel_job(store, name)
    return _say_what_is_saved(store, name)


def _say_what_is_saved(store: Store, name: str) -> int:
    head = read_head(store)
    if head is None or not head.commits:
        say("nothing had been saved yet")
        return 0
    step = verify_presence(store, head.commits[0]).step
    say(f"the checkpoint of step {step} is whole (every byte: notus-ckpt verify {store.url})")
    say(f"to go on: launch with --name {name} again")
    return 0


def _save_and_end(store: Store, name: str, clock: Clock, *, sure: bool) -> bool:
    """Ask the trainer, and wait until it has ended; False = nobody answers.

    Whether one is alive is not judged by the clock of its heartbeat, which isn't ours, but by what it does: a changed
    heartbeat, or its note that it was told to stop. `sure` that one is: wait to the end.
    """
    head = read_head(store)
    before = {event.id for event in read_events(store)}
    beat = read_heartbeat(store)
    ask(store, "stop", head.epoch if head else 0, "by the user", clock)
    say(f"asked run {name} to save and end (Ctrl-C leaves; it ends all the same)")
    start = clock.now()
    while clock.now() - start < timedelta(seconds=PATIENCE_S if sure else ANSWER_S):
        news = [event for event in read_events(store) if event.id not in before]
        if ends := [end for _, end in of_kind(news, RunEnd)]:
            say(f"run {name}: {ends[-1].kind} at step {ends[-1].step}")
            return True
        sure = sure or read_heartbeat(store) != beat or bool(of_kind(news, Notice))
        clock.sleep(POLL_S)
    if not sure:
        return False
    raise RunFailed(
        f"run {name} has not ended within {PATIENCE_S / 60:.0f} min; it still will, as soon as it looks",
        f"see: notus-launch status {name}; without saving: notus-launch stop {name} --now",
    )


def _end_job(store: Store, name: str) -> None:
    """Cancel the job where there is no trainer to ask, and note the end: only where it is known to be one.

    Otherwise the request to stop stays: the strategy looks for it before it asks for a machine, and a trainer while it
    trains.
    """
    ask(store, "stop", 0, "by the user")
    if not _cancel_job(store, name):
        raise RunFailed(
            f"SkyPilot here can't end the job of run {name}; it will stop by itself as soon as it sees the request",
            "run this again where the run was launched, or watch: notus-launch status",
        )
    saved = read_status(store, name, datetime.now(UTC)).saved_step
    Diary(store, 0).write(Stopped(step=saved or 0, reason="by the user"))
    withdraw(store)


def _cancel_job(store: Store, name: str) -> bool:
    """Cancel the job if SkyPilot still has one, its machine goes with it; True = there is none that runs on.

    A job that ended here says nothing of a machine that the run got since: another computer launched it.
    """
    try:
        job = client.find_job(name)
        if job is None:
            return False
        if not job.over:
            client.cancel(job.id)
            say(f"cancelled SkyPilot's job {job.id}; its machine is given back")
            return True
        return job.ended_at is None or not began_since(read_events(store), job.ended_at)
    except NotusError as error:
        say(f"{error.message}: look with `sky jobs queue` whether the job of {name} has ended")
        return False
