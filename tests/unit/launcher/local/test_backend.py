"""What the local backend makes of an attempt's end: the same rule as on a VM."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from checkpoints.commit.head import LEASE_S, Lease, Writer, lease_over_s, silent_holder
from checkpoints.errors import RunHeld, StoreError
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.local import backend
from launcher.local.backend import LocalBackend, LocalRun
from trainer.runtime.attempt_dir import Outcome, Progress, Scratch
from trainer.supervisor.supervisor import pid_scope


class Attempts:
    """Of one run: each with a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ObjectStore.memory()
        run = LocalRun(run="r", recipe="tiny-dpo", bucket=str(folder), processes=2)
        self.backend: Any = LocalBackend(run, self.store, folder, watcher=None)  # type: ignore[arg-type]
        self.number = 0

    def ended(self, result: Outcome | None, *, claimed: bool = True, saved: bool = False) -> Outcome:
        self.number += 1
        scratch = Scratch(self.folder / str(self.number))
        scratch.folder.mkdir()
        scratch.write_progress(Progress(phase="training", step=7))
        if claimed:
            lease = Lease.claim(self.store, Writer(id=f"w{self.number}", host="h", pid=1))
            lease.release()
            scratch.write_head(lease.head)
        if saved:
            Diary(self.store, self.number).write("saved", step=self.number)
        outcome: Outcome = self.backend._judged(scratch, result)
        return outcome

    def kinds(self) -> list[str]:
        return [event.kind for event in read_events(self.store)]


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def test_an_attempt_that_was_killed_is_noted_and_the_third_in_a_row_gives_up(attempts: Attempts) -> None:
    assert [attempts.ended(None).gave_up for _ in range(3)] == [False, False, True]
    assert attempts.kinds() == [*["attempt_ended"] * 3, "failed"]
    ended = next(event for event in read_events(attempts.store) if event.kind == "attempt_ended")
    assert (ended.attempt, ended.data["outcome"], ended.data["step"]) == (1, "failed", 7)


def test_progress_begins_the_count_anew(attempts: Attempts) -> None:
    assert not any(attempts.ended(None, saved=True).gave_up for _ in range(9))


def test_an_attempt_that_never_claimed_counts_too(attempts: Attempts) -> None:
    away = Outcome(kind="failed", message="the bucket is away")
    assert [attempts.ended(away, claimed=False).gave_up for _ in range(3)] == [False, False, True]
    assert attempts.kinds() == [*["setup_failed"] * 3, "failed"]


@pytest.mark.parametrize("gave_up", [True, False])
def test_an_attempt_that_has_counted_itself_is_believed(attempts: Attempts, gave_up: bool) -> None:
    result = Outcome(kind="failed", message="NCCL", gave_up=gave_up)
    assert attempts.ended(result) == result
    assert attempts.kinds() == []


def test_without_the_diary_it_gives_up(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StoreError("no route to the bucket")

    monkeypatch.setattr(backend, "read_events", away)
    outcome = attempts.ended(None)
    assert outcome.gave_up
    assert "no route to the bucket" in outcome.message


# --- a run that somebody may hold -----------------------------------------------------------------------


@pytest.fixture
def gone(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the attempts are told to be dead."""
    told: list[str] = []

    def attempt(scratch: Scratch, gone: str) -> Outcome:
        told.append(gone)
        return Outcome(kind="finished", step=24)

    monkeypatch.setattr(attempts.backend, "_attempt", attempt)
    return told


def test_a_holder_on_another_machine_that_shows_no_life_for_a_lease_is_dead(
    attempts: Attempts, gone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock was an hour ahead; or this machine has been restarted since."""
    clock = FakeClock()
    ahead = FakeClock(clock.now() + timedelta(hours=1))
    Lease.claim(attempts.store, Writer(id="w", host="h", pid=1, pid_scope="elsewhere"), clock=ahead)
    monkeypatch.setattr(backend, "silent_holder", lambda store: silent_holder(store, clock))
    assert attempts.backend.run().kind == "finished"
    assert gone == ["w"]
    assert clock.monotonic() == lease_over_s(LEASE_S)


def test_a_holder_that_lives_is_left_alone(
    attempts: Attempts, gone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lease.claim(attempts.store, Writer(id="w", host="h", pid=1, pid_scope="elsewhere"), clock=FakeClock())

    class Clock(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            held.renew()

    monkeypatch.setattr(backend, "silent_holder", lambda store: silent_holder(store, Clock()))
    with pytest.raises(RunHeld) as caught:
        attempts.backend.run()
    assert (caught.value.exit_code, gone) == (2, [])


@pytest.mark.parametrize("how", ["new", "given back", "a dead process of this machine"])
def test_nobody_waits_where_it_is_known(
    attempts: Attempts, gone: list[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "new":
        scope = pid_scope() if how.startswith("a dead") else "elsewhere"
        lease = Lease.claim(attempts.store, Writer(id="w", host="h", pid=2**22 + 1, pid_scope=scope))
        if how == "given back":
            lease.release()
    clock = FakeClock()
    monkeypatch.setattr(backend, "silent_holder", lambda store: silent_holder(store, clock))
    assert attempts.backend.run().kind == "finished"
    assert gone == ["w" if how.startswith("a dead") else ""]
    assert clock.monotonic() == 0
