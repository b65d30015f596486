"""What an attempt does in the bucket while its ranks compute, without its thread."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.errors import Fenced, StoreError
from checkpoints.run_log.event_kinds import Notice
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import read_heartbeat, write_controller_beat
from checkpoints.run_log.stop_request import ask
from checkpoints.storage.object_store import ObjectStore
from trainer.runtime.attempt_dir import Progress, Scratch
from trainer.runtime.stop_flag import read_stop
from trainer.supervisor.bucket_upkeep import CONTROLLER_S, Upkeep
from trainer.supervisor.dead_mans_switch import SILENT_S, Controller


class Fixture:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.store: Any = ObjectStore.memory()
        self.scratch = Scratch(folder)
        self.lease: Any = SimpleNamespace(head=SimpleNamespace(epoch=4), renew=lambda: None)
        self.mirrored = 0
        self.controller = Controller(expected=True, now_s=self.now)
        self.upkeep = Upkeep(
            self.store,
            self.lease,
            Diary(self.store, 4),
            self.scratch,
            mirrors=(self.mirror,),
            controller=self.controller,
        )

    def mirror(self) -> None:
        self.mirrored += 1

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.upkeep.once()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    return Fixture(tmp_path, monkeypatch)


def test_it_beats_and_mirrors(made: Fixture) -> None:
    made.scratch.write_progress(Progress(phase="training", step=9, total_steps=24, save_s=3.0))
    made.after(0)
    beat = read_heartbeat(made.store)
    assert beat is not None
    assert (beat.attempt, beat.phase, beat.step) == (4, "training", 9)
    made.after(1)
    assert made.mirrored == 1
    made.after(5)
    assert made.mirrored == 2


def test_a_request_for_this_attempt_becomes_a_stop_in_every_phase(made: Fixture) -> None:
    ask(made.store, "move", 3, "another attempt's")
    made.after(0)
    assert read_stop(made.scratch.stop) is None
    ask(made.store, "move", 4, "hung")
    made.after(5)
    stop = read_stop(made.scratch.stop)
    assert stop is not None
    assert stop.source == "move"
    assert made.upkeep.request is not None


def test_a_notice_waits_for_a_bucket_that_is_away_and_keeps_its_time(
    made: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.upkeep.note(Notice(source="gcp", deadline=None, step=3))
    with monkeypatch.context() as away:
        away.setattr(Diary, "append", lambda self, event: (_ for _ in ()).throw(StoreError("away")))
        with pytest.raises(StoreError):
            made.upkeep.write_notes()
    made.upkeep.write_notes()
    (event,) = read_events(made.store)
    assert (event.kind, event.attempt, event.data["source"]) == ("notice", 4, "gcp")


def test_the_buckets_last_answer_is_known(made: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    made.after(10)
    assert made.upkeep.away_s(made.now) == 0

    def away() -> None:
        raise StoreError("away")

    made.lease.renew = away
    with pytest.raises(StoreError):
        made.after(300)
    assert made.upkeep.away_s(made.now) == 300


def test_a_successor_is_fatal(made: Fixture) -> None:
    def fenced() -> None:
        raise Fenced("attempt 5 has taken over")

    made.lease.renew = fenced
    made.upkeep._run()
    assert made.upkeep.fenced is not None


def test_a_silent_controller_is_an_alarm_once(made: Fixture) -> None:
    made.scratch.write_progress(Progress(phase="training", step=9))
    write_controller_beat(made.store, datetime(2026, 11, 28, tzinfo=UTC), 1)
    made.after(0)
    for _ in range(int(3 * SILENT_S / CONTROLLER_S)):
        made.after(CONTROLLER_S)
    (alarm,) = [event for event in read_events(made.store) if event.kind == "alarm"]
    assert alarm.data["about"] == "controller"
    assert SILENT_S <= alarm.data["stuck_s"] < SILENT_S + 2 * CONTROLLER_S
    write_controller_beat(made.store, datetime(2026, 11, 28, 1, tzinfo=UTC), 1)
    made.after(CONTROLLER_S)
    assert made.controller.is_watching(made.now)
