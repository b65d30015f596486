"""A local run whose launcher is gone, and one that is done: what status and receipt say, and what a launch does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import StoreError
from checkpoints.records.verified_reads import read_if_there
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, Compared, Finished, Preempted, Stopped
from checkpoints.run_log.event_log import Diary, Event, of_kind, read_events
from checkpoints.run_log.run_record import HEARTBEAT_KEY, Heartbeat, open_run, register_run
from checkpoints.storage.object_store import ObjectStore
from launcher import cli
from launcher.commands.receipts import PAGE, read_report
from launcher.local.backend import LocalRun
from launcher.local.presence import LAUNCHER_KEY, LauncherRecord, is_gone, no_process_here, record_launcher
from launcher.report.receipt import make_receipt
from launcher.report.status import read_status
from trainer.config.recipe import load_recipe
from trainer.main import new_record
from trainer.supervisor.supervisor import pid_scope

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
NO_PID = 2**22 + 1
"""Above the kernel's largest."""


def record(pid: int = 0, scope: str | None = None, late_s: float = 0.0) -> LauncherRecord:
    pid = pid or os.getpid()
    started = psutil.Process(pid).create_time() if pid != NO_PID else 0.0
    return LauncherRecord(
        host="h", pid=pid, pid_scope=pid_scope() if scope is None else scope, started=started - late_s
    )


def local_run(store: ObjectStore, *, writer: int, beat_s_ago: float = 1.0) -> None:
    """An attempt that has begun, by a process of this machine."""
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    Lease.claim(store, Writer(id="w", host="h", pid=writer, pid_scope=pid_scope()))
    Diary(store, 1).write(AttemptStarted())
    beat = Heartbeat(attempt=1, time=NOW - timedelta(seconds=beat_s_ago), phase="training", step=5, total_steps=24)
    store.put(HEARTBEAT_KEY, beat.to_json())


def state(store: ObjectStore) -> str:
    return read_status(store, "r", NOW).state


def test_a_launcher_leaves_its_name_while_it_looks_after_a_run() -> None:
    store = ObjectStore.memory()
    with pytest.raises(RuntimeError), record_launcher(store):
        found = read_if_there(store, LAUNCHER_KEY, LauncherRecord)
        assert found is not None
        assert not is_gone(found)
        raise RuntimeError
    assert not list(store.list(""))


def test_a_bucket_that_does_not_take_the_name_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore.memory()

    def away(*_: Any) -> None:
        raise StoreError("away")

    monkeypatch.setattr(store, "put", away)
    monkeypatch.setattr(store, "delete", away)
    looked_in = False
    with record_launcher(store):
        looked_in = True
    assert looked_in


def test_only_a_process_of_this_machine_is_known_to_be_gone() -> None:
    assert not is_gone(record())
    assert is_gone(record(NO_PID))
    assert is_gone(record(late_s=100)), "another process has its number by now"
    assert not is_gone(record(NO_PID, scope="another machine's"))
    assert not is_gone(record(NO_PID, scope=""))


def test_a_run_whose_launcher_was_killed_is_not_running() -> None:
    store = ObjectStore.memory()
    local_run(store, writer=NO_PID)
    store.put(LAUNCHER_KEY, record(NO_PID).to_json())
    status = read_status(store, "r", NOW)
    assert status.state == "waiting for a launcher"
    assert status.phase is None
    assert status.note == "its launcher on this machine is gone; to resume: launch --name r again"


def test_the_receipt_of_an_attempt_that_was_killed_with_its_launcher_says_so() -> None:
    store = ObjectStore.memory()
    local_run(store, writer=NO_PID)
    store.put(LAUNCHER_KEY, record(NO_PID).to_json())
    receipt = read_report(store, "r").receipt
    assert (receipt.state, receipt.attempts[0].ended, receipt.preemptions) == ("stopped", "killed", 0)
    begun = read_events(store)[0].time
    assert receipt.attempts[0].ended_at == max(begun, NOW - timedelta(seconds=1)), "the last sign of life, not now"


def test_an_attempt_that_still_saves_after_its_launcher_was_killed_is_running() -> None:
    store = ObjectStore.memory()
    local_run(store, writer=os.getpid())
    store.put(LAUNCHER_KEY, record(NO_PID).to_json())
    assert state(store) == "running"
    Diary(store, 1).write(AttemptEnded(outcome="preempted", step=6))
    assert state(store) == "recovering", "its process is still there"
    local_run_silent = NOW + timedelta(seconds=200)
    assert read_status(store, "r", local_run_silent).state == "waiting for a launcher", "another has its number by now"


def test_between_two_attempts_a_living_launcher_recovers() -> None:
    store = ObjectStore.memory()
    local_run(store, writer=NO_PID)
    store.put(LAUNCHER_KEY, record().to_json())
    assert state(store) == "running", "the launcher has not seen it yet"
    Diary(store, 1).write(Preempted(step=6, by="--preempt"))
    assert read_status(store, "r", datetime.now(UTC)).state == "recovering"


@pytest.mark.parametrize("content", [None, b"{", b'{"host": 3}'])
def test_without_a_name_a_dead_attempt_tells(content: bytes | None) -> None:
    store = ObjectStore.memory()
    local_run(store, writer=NO_PID)
    if content is not None:
        store.put(LAUNCHER_KEY, content)
    assert state(store) == "waiting for a launcher"


def test_another_machines_run_is_given_up_after_half_an_hour_of_silence() -> None:
    store = ObjectStore.memory()
    local_run(store, writer=os.getpid(), beat_s_ago=200)
    store.put(LAUNCHER_KEY, record(NO_PID, scope="another machine's").to_json())
    assert state(store) == "silent"
    store = ObjectStore.memory()
    local_run(store, writer=os.getpid(), beat_s_ago=1801)
    assert "no sign of life" in str(read_status(store, "r", NOW).note)
    assert not no_process_here(store, None, silent=True)


def event(at_s: float, kind: Any, attempt: int, **data: Any) -> Event:
    return Event(time=NOW + timedelta(seconds=at_s), id=f"{at_s:08.1f}", kind=kind, attempt=attempt, data=data)


@pytest.mark.parametrize(
    "ends",
    [
        [event(20, "attempt_ended", 1, outcome="preempted", step=5), event(21, "stopped", 1, step=5)],
        [event(21, "stopped", 1, step=5)],  # twice Ctrl-C: the attempt could say nothing
    ],
)
def test_a_users_stop_is_no_preemption(ends: list[Event]) -> None:
    begun = [event(0, "attempt_started", 1), event(10, "training", 1, step=1), *ends]
    receipt = make_receipt("r", begun, [], [], NOW + timedelta(hours=9))
    assert (receipt.state, receipt.preemptions) == ("stopped", 0)
    assert receipt.attempts[0].ended == "stopped"
    assert receipt.wall_s <= 21
    second = [event(5000, "attempt_started", 2), event(5010, "training", 2, step=6)]
    again = [*begun, *second, event(5020, "attempt_ended", 2, outcome="finished", step=9)]
    receipt = make_receipt("r", again, [], [], NOW + timedelta(hours=9))
    assert (receipt.preemptions, receipt.attempts[0].ended) == (0, "stopped")
    assert receipt.lost_to_preemptions_s == 0, "a pause that the user made is nobody's loss"


def test_a_preemption_before_a_stop_stays_one() -> None:
    begun = [event(0, "attempt_started", 1), event(20, "preempted", 1, step=5), event(21, "stopped", 0, step=5)]
    assert make_receipt("r", begun, [], [], NOW).preemptions == 1


def test_a_finished_run_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(
        "launcher.commands.launch_local.run_here", lambda *_, **__: pytest.fail("nothing is left to do")
    )
    (tmp_path / "bucket").mkdir()
    store = open_run(str(tmp_path / "bucket"), "r")
    register_run(store, new_record("r", load_recipe("tiny-dpo")))
    diary = Diary(store, 1)
    diary.write(AttemptStarted())
    diary.write(AttemptEnded(outcome="finished", step=24))
    diary.write(Finished(step=24))
    before = sorted(entry.key for entry in store.list(""))
    made: list[str] = []
    monkeypatch.setattr("launcher.commands.launch_local.compare_with_twin", lambda run, *_: made.append(run.run))

    def launch(*more: str) -> int:
        command = ["notus-launch", "--cloud", "local", "--name", "r", "--bucket", str(tmp_path / "bucket"), *more]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0)

    assert launch("--recipe", "tiny-dpo") == 0
    told = capsys.readouterr()
    assert "run r is already finished" in told.err
    assert "receipt of r" in told.out
    assert launch("--recipe", "tiny-dpo-lora") == 2, "its recipe is another one"
    assert "exists with another recipe" in capsys.readouterr().err
    assert launch("--recipe", "tiny-dpo", "--preempt", "3", "--no-compare") == 0
    told = capsys.readouterr()
    assert "--preempt has nothing left to preempt" in told.err
    assert "killed 3 times" not in told.err
    assert sorted(entry.key for entry in store.list("")) == before
    assert made == []

    for asked in (("--preempt", "2"), ("--compare",)):  # only the twin is made
        assert launch("--recipe", "tiny-dpo", *asked) == 0
        assert "run r is already finished" in capsys.readouterr().err
    assert made == ["r", "r"]
    assert sorted(entry.key for entry in store.list("")) == sorted([*before, PAGE]), "with the comparison on it"
    diary.write(Compared(equal=True))
    assert launch("--recipe", "tiny-dpo", "--compare") == 0
    assert made == ["r", "r"], "it has been compared"


def test_a_stopped_run_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from launcher.commands.launch_local import _is_finished

    store = ObjectStore.memory()
    recipe = load_recipe("tiny-dpo")
    assert not _is_finished(store, "r", recipe), "it was never launched"
    register_run(store, new_record("r", recipe))
    Diary(store, 1).write(Stopped(step=5))
    assert not _is_finished(store, "r", recipe)
    Diary(store, 1).write(Finished(step=24))
    assert _is_finished(store, "r", recipe)


def test_a_finished_twin_is_only_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from launcher.commands import launch_local as story

    monkeypatch.setattr("launcher.commands.launch_local.run_here", lambda *_, **__: pytest.fail("the twin is done"))
    recipe, bucket = load_recipe("tiny-dpo"), str(tmp_path)
    for name in ("r", "r-uninterrupted"):
        store = open_run(bucket, name)
        register_run(store, new_record(name, recipe))
        Diary(store, 1).write(Finished(step=24))
    run = LocalRun(run="r", recipe="tiny-dpo", bucket=bucket, processes=1)
    compared = SimpleNamespace(equal=True, steps=24, tensors=64, differences=())
    monkeypatch.setattr("launcher.commands.launch_local.compare_runs", lambda *_: compared)
    story.compare_with_twin(run, recipe, open_run(bucket, "r"))
    [(_, result)] = of_kind(read_events(open_run(bucket, "r")), Compared)
    assert (result.equal, result.twin) == (True, "r-uninterrupted")


@pytest.fixture
def zombie() -> Iterator[int]:
    """The pid of a process that has ended, and that nobody has reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_a_process_that_nobody_reaps_is_gone(zombie: int) -> None:
    """In a container without an init the orphan of a killed launcher keeps its pid for ever."""
    assert is_gone(record(zombie))
    store = ObjectStore.memory()
    local_run(store, writer=zombie)
    store.put(LAUNCHER_KEY, record(zombie).to_json())
    assert state(store) == "waiting for a launcher"
