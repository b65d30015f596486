"""The supervisor's own decisions, with ranks and a bucket that are only told of."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.errors import Fenced, StoreError
from checkpoints.run_log.event_kinds import Alarm, Notice, Payload
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.storage.object_store import ObjectStore
from trainer.config.recipe import load_recipe
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Outcome, Phase, Progress, Scratch
from trainer.runtime.startup_phases import BEFORE
from trainer.runtime.stop_flag import read_stop, request_stop
from trainer.supervisor import supervisor as attempt
from trainer.supervisor.dead_mans_switch import HANG_S
from trainer.supervisor.supervisor import HUNG_GRACE_S, HUNG_S, STOP_GRACE_S, Supervisor

BUDGET = {"NOTUS_BUDGET_USD": "50", "NOTUS_SPENT_USD": "49.9", "NOTUS_PRICE_USD_H": "16"}
RENTED = {"SKYPILOT_CLUSTER_INFO": "{}"}


class Ranks:
    """A process that never ends by itself; each look takes half a second."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.returncode = -9

    def poll(self) -> None:
        return None

    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.each_tick()
        raise subprocess.TimeoutExpired("ranks", seconds)


class World:
    """A supervisor after its claim."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.now = 1000.0
        self.each_tick: Callable[[], None] = lambda: None
        self.store: Any = ObjectStore.memory()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(attempt, "read_head", lambda store: None)
        monkeypatch.setattr(attempt, "machine_age_s", lambda: 60.0)
        for name in (*BUDGET, *RENTED):
            monkeypatch.delenv(name, raising=False)

    def supervisor(self, environment: dict[str, str] | None = None, **upkeep: Any) -> Any:
        for name, value in (environment or {}).items():
            self.monkeypatch.setenv(name, value)
        made: Any = Supervisor(
            load_recipe("tiny-dpo"), "tiny-dpo", run="r", bucket=str(self.folder), store=self.store,
            scratch=Scratch(self.folder), processes=2,
        )  # fmt: skip
        self.noted: list[Payload] = []
        self.freed: list[bool] = []
        made._lease = SimpleNamespace(
            head=SimpleNamespace(epoch=3, commits=()), release=lambda: self.freed.append(True)
        )
        made._diary = Diary(self.store, 3)
        made._journal = made._tensorboard = SimpleNamespace(sync=lambda **_: None)
        defaults: dict[str, Any] = {
            "fenced": None,
            "request": None,
            "away_s": lambda now: 0.0,
            "note": self.noted.append,
            "stop": lambda: True,
            "write_notes": lambda: None,
        }
        made._upkeep = SimpleNamespace(**{**defaults, **upkeep})
        return made

    def progress(self, phase: Phase, step: int = 0, save_s: float | None = None) -> None:
        Scratch(self.folder).write_progress(Progress(phase=phase, step=step, save_s=save_s))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("phase", sorted(BEFORE_TRAINING))
def test_a_stop_before_training_ends_at_once(world: World, phase: Phase) -> None:
    world.progress(phase)
    request_stop(Scratch(world.folder).stop, "move")
    outcome = world.supervisor()._watch(Ranks(world))
    assert outcome.kind == "preempted"
    assert world.now == 1000.0
    assert world.noted == [Notice(source="move", deadline=None, step=0)]


@pytest.mark.parametrize("phase", ["training", "saving", "evaluating", "exporting"])
def test_ranks_that_do_not_obey_are_killed_after_the_grace(world: World, phase: Phase) -> None:
    world.progress(phase, step=5)
    request_stop(Scratch(world.folder).stop, "move")
    assert world.supervisor()._watch(Ranks(world)) is None, "the ranks are killed, and what they said counts"
    assert 0 <= world.now - 1000.0 - STOP_GRACE_S <= 2.0


def test_ranks_that_hang_already_get_a_minute(world: World) -> None:
    """They stand in a kernel or a collective, and don't look whether they are asked to stop."""
    world.progress("training", step=5)
    asked_at = HUNG_S + 60

    def ask() -> None:
        if world.now > 1000.0 + asked_at:
            request_stop(Scratch(world.folder).stop, "move")

    world.each_tick = ask
    assert world.supervisor()._watch(Ranks(world)) is None
    assert 0 <= world.now - 1000.0 - asked_at - HUNG_GRACE_S <= 2.0


def test_the_budget_asks_the_ranks_to_save_and_kills_those_that_do_not(world: World) -> None:
    world.progress("training", step=5, save_s=40.0)
    supervisor = world.supervisor(BUDGET)
    assert supervisor._watch(Ranks(world)) is None
    stop = read_stop(Scratch(world.folder).stop)
    assert stop is not None
    assert stop.source == "budget"
    assert stop.deadline is not None, "what fits into the time that is left"
    assert 0 <= world.now - 1000.0 - (1.5 * 40 + 60) <= 2.0
    killed = supervisor._judge(Outcome(kind="failed", step=5, message="rank 0, 1 died without reporting an error"))
    assert (killed.kind, killed.limit) == ("stopped", "budget")


def test_the_budget_ends_an_attempt_that_has_nothing_to_save(world: World) -> None:
    world.progress("loading the model")
    supervisor = world.supervisor(BUDGET)
    outcome = supervisor._judge(supervisor._watch(Ranks(world)))
    assert (outcome.kind, outcome.limit) == ("stopped", "budget")
    supervisor._finish(outcome)
    (stopped,) = [event for event in read_events(world.store) if event.kind == "stopped"]
    assert stopped.data["limit"] == "budget"


def test_the_budget_shortens_the_patience_of_a_stop_that_stands(world: World) -> None:
    world.progress("training", step=5, save_s=40.0)
    supervisor = world.supervisor({**BUDGET, "NOTUS_SPENT_USD": "46.5"})
    request_stop(Scratch(world.folder).stop, "move")
    assert supervisor._watch(Ranks(world)) is None
    assert supervisor._verdict == "budget"
    assert world.now - 1000.0 < STOP_GRACE_S - 60


def test_a_run_that_was_done_before_the_stop_came_is_done(world: World) -> None:
    supervisor = world.supervisor(BUDGET)
    supervisor._verdict = "budget"
    assert supervisor._judge(Outcome(kind="finished", step=24)).kind == "finished"


def test_a_hang_that_nobody_looks_after_is_a_failure(world: World) -> None:
    world.progress("training", step=5)
    outcome = world.supervisor(RENTED)._watch(Ranks(world))
    assert outcome.kind == "failed"
    assert "no progress for 60 min: training" in outcome.message
    assert 0 <= world.now - 1000.0 - HANG_S <= 2.0


def test_a_successor_ends_it(world: World) -> None:
    world.progress("training", step=5)
    outcome = world.supervisor(fenced=Fenced("attempt 4 has taken over"))._watch(Ranks(world))
    assert (outcome.kind, outcome.message) == ("fenced", "attempt 4 has taken over")


def test_a_users_stop_is_a_stop_also_for_ranks_that_hung(world: World) -> None:
    request = SimpleNamespace(action="stop", reason="enough", limit=None)
    supervisor = world.supervisor(request=request)
    for kind in ("preempted", "failed"):
        outcome = supervisor._judge(Outcome(kind=kind))
        assert (outcome.kind, outcome.message) == ("stopped", "enough")


def test_the_third_failed_start_gives_up_and_says_so(world: World) -> None:
    for number in (1, 2):
        Diary(world.store, number).write("attempt_ended", outcome="failed", step=0)
    outcome = world.supervisor()._finish(Outcome(kind="failed", message="NCCL"))
    assert outcome.gave_up
    last = read_events(world.store)[-1]
    assert (last.kind, last.attempt, last.data["exit_code"]) == ("failed", 3, 1)
    assert "NCCL" in last.data["message"]


def test_a_supervisor_that_fails_itself_asks_for_another_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for a process, a full disk: an exception would be exit code 1, and the end of the job."""

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    monkeypatch.setattr(attempt, "adopt_orphans", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    outcome = world.supervisor().run()
    assert outcome.kind == "failed"
    assert not outcome.gave_up
    ended = [event for event in read_events(world.store) if event.kind == "attempt_ended"]
    assert "Cannot allocate memory" in ended[0].data["message"]


@pytest.mark.parametrize("progressed", [True, False])
def test_a_failure_is_worth_another_machine(world: World, progressed: bool) -> None:
    outcome = world.supervisor()._finish(Outcome(kind="failed", progressed=progressed))
    assert not outcome.gave_up
    assert world.freed == [True]


def test_an_error_that_an_earlier_attempt_got_past_is_no_users_error(world: World) -> None:
    supervisor = world.supervisor()
    world.progress("preparing data")
    Diary(world.store, 1).write("attempt_started", inputs=supervisor._inputs)
    Diary(world.store, 1).write("saved", step=7)
    assert supervisor._judge(Outcome(kind="user_error", message="no such data set")).kind == "failed"
    world.progress("training", step=20)
    assert supervisor._judge(Outcome(kind="user_error", message="the loss is nan")).kind == "user_error"


def test_a_bucket_that_is_away_does_not_hold_the_machine_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request takes two minutes to fail."""

    def fails(*_: object, **__: object) -> None:
        world.now += 120
        raise StoreError("away")

    monkeypatch.setattr(Diary, "write", fails)
    monkeypatch.setattr(attempt, "read_events", fails)
    supervisor = world.supervisor()
    supervisor._journal = supervisor._tensorboard = SimpleNamespace(sync=fails)
    supervisor._lease.release = fails
    outcome = supervisor._finish(Outcome(kind="failed"))
    assert outcome.gave_up, "nobody counts, and SkyPilot's own strategies would go on without end"
    assert world.now - 1000.0 <= 180 + 2 * 120


@pytest.mark.parametrize("phase", sorted(BEFORE_TRAINING))
def test_what_stands_still_before_the_training_raises_an_alarm_and_fails(world: World, phase: Phase) -> None:
    """On a laptop, too: the first start of a newcomer once hung forever behind a lock."""
    world.progress(phase)
    outcome = world.supervisor()._watch(Ranks(world))
    limit_s = BEFORE[phase].quiet_s
    assert outcome.kind == "failed"
    assert outcome.message == f"no progress for {limit_s / 60:.0f} min: {BEFORE[phase].words}"
    assert 0 <= world.now - 1000.0 - limit_s <= 2.0
    (alarm,) = world.noted
    assert isinstance(alarm, Alarm)
    assert (alarm.phase, alarm.about) == (phase, "progress")
    assert alarm.stuck_s == pytest.approx(limit_s / 2, abs=2)


def test_a_phase_that_moves_may_take_as_long_as_it_likes(world: World) -> None:
    def move() -> None:
        done = int(world.now // 60)
        Scratch(world.folder).write_progress(Progress(phase="preparing data", done=done))
        if world.now > 1000.0 + 12 * 3600:
            request_stop(Scratch(world.folder).stop, "enough")

    world.each_tick = move
    assert world.supervisor()._watch(Ranks(world)).kind == "preempted"
    assert not [noted for noted in world.noted if isinstance(noted, Alarm)]
