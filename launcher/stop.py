"""`notus-launch stop`: the trainer saves and ends, what it saved is verified, and the machine goes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from checkpoints.clock import Clock, SystemClock
from checkpoints.errors import NotusError
from checkpoints.events import Diary, Event, read_events
from checkpoints.head import read_head
from checkpoints.requests import ask, withdraw
from checkpoints.restore import verify_presence
from checkpoints.run import open_run
from checkpoints.store import Store
from launcher.errors import RunFailed
from launcher.launch import say
from launcher.options import default_bucket
from launcher.report.status import OVER, read_status
from launcher.sky import client

PATIENCE_S = 900.0
"""For a step, a save and its upload; a 7B model's takes a few minutes."""
POLL_S = 2.0


def stop_run(bucket: str | None, name: str, *, at_once: bool) -> int:
    """Stop a run; returns the exit code. Raises `RunFailed` where it does not end in time."""
    store = open_run(bucket or default_bucket(), name)
    status = read_status(store, name, datetime.now(UTC))
    in_cloud = status.in_cloud
    if status.state in OVER:
        say(f"run {name} is over already: {status.state}")
        _give_back(name, in_cloud=in_cloud)
        return 0
    if at_once or status.state != "running":
        _end_without_saving(store, name, at_once=at_once, in_cloud=in_cloud)
    else:
        _save_and_end(store, name, SystemClock())
        _give_back(name, in_cloud=in_cloud)
    head = read_head(store)
    if head is None or not head.commits:
        say("nothing had been saved yet")
        return 0
    step = verify_presence(store, head.commits[0]).step
    say(f"the checkpoint of step {step} is whole (every byte: notus-ckpt verify {store.url})")
    say(f"to go on: launch with --name {name} again")
    return 0


def _save_and_end(store: Store, name: str, clock: Clock) -> None:
    head = read_head(store)
    before = {event.id for event in read_events(store)}  # not by time: the machine's clock isn't ours
    ask(store, "stop", head.epoch if head else 0, "by the user", clock)
    say(f"asked run {name} to save and end (Ctrl-C leaves; it ends all the same)")
    deadline = clock.now() + timedelta(seconds=PATIENCE_S)
    while clock.now() < deadline:
        if (end := _end(read_events(store), before)) is not None:
            say(f"run {name}: {end.kind} at step {end.data.get('step', 0)}")
            return
        clock.sleep(POLL_S)
    raise RunFailed(
        f"run {name} has not ended within {PATIENCE_S / 60:.0f} min; it still will, as soon as it looks",
        f"see: notus-launch status {name}; without saving: notus-launch stop {name} --now",
    )


def _end(events: list[Event], before: set[str]) -> Event | None:
    ends = [event for event in events if event.kind in ("stopped", "finished", "failed") and event.id not in before]
    return ends[-1] if ends else None


def _end_without_saving(store: Store, name: str, *, at_once: bool, in_cloud: bool) -> None:
    """No trainer is running that could save, or the user doesn't want to wait for it."""
    if not in_cloud:
        ask(store, "stop", 0, "by the user")
        say("the run is not running; if a launcher still tries, it will stop" if not at_once else "asked it to end")
        return
    say("cancelling the job" if at_once else "no trainer is running: cancelling the job")
    _give_back(name, in_cloud=True)
    status = read_status(store, name, datetime.now(UTC))
    Diary(store, 0).write("stopped", step=status.saved_step or 0, reason="by the user")
    withdraw(store)


def _give_back(name: str, *, in_cloud: bool) -> None:
    """Cancel the job if SkyPilot still has one; its machine goes with it."""
    if not in_cloud:
        return
    try:
        job = client.find_job(name)
        if job is not None and not job.over:
            client.cancel(job.id)
            say(f"cancelled SkyPilot's job {job.id}; its machine is given back")
    except NotusError as error:
        say(f"{error.message}: look with `sky jobs queue` whether the job of {name} has ended")
