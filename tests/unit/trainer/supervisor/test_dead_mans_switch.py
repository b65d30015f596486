"""The limits that a rented machine keeps by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from checkpoints.run_log.run_record import ControllerBeat
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Phase, Progress
from trainer.runtime.startup_phases import BEFORE
from trainer.supervisor.dead_mans_switch import (
    AUTODOWN_S,
    BUCKET_AWAY_S,
    HANG_S,
    SET_UP_S,
    SILENT_S,
    TEARDOWN_S,
    DeadMansSwitch,
    machine_age_s,
    machine_budget,
    save_limit_s,
)

CONDUCTED = {
    "NOTUS_BUDGET_USD": "50",
    "NOTUS_SPENT_USD": "18",
    "NOTUS_PRICE_USD_H": "16",
    "SKYPILOT_CLUSTER_INFO": "{}",
}
TRAINING = Progress(phase="training", step=7, total_steps=1000, save_s=40.0)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def beat(minute: float) -> ControllerBeat:
    return ControllerBeat(time=NOON + timedelta(minutes=minute), launch=1)


def switch(environment: dict[str, str] = CONDUCTED, *, age_s: float = 600.0) -> DeadMansSwitch:
    return DeadMansSwitch(environment, age_s=age_s, now_s=1000.0)


def ends_after_s(one: DeadMansSwitch, *, heard: bool) -> float:
    """Seconds of this attempt until the budget ends it, looked at every ten seconds, a step each."""
    for second in range(0, 24 * 3600, 10):
        now = 1000.0 + second
        if heard:
            one.controller.look(beat(second), now)
        if (
            one.verdict(TRAINING.model_copy(update={"step": second, "total_steps": 10**6}), away_s=0.0, now_s=now)
            == "budget"
        ):
            return second
    raise AssertionError("it never ends")


@pytest.mark.parametrize(("heard", "down_s"), [(True, TEARDOWN_S), (False, AUTODOWN_S)])
def test_the_machine_ends_before_the_budget_is_gone_with_what_closing_takes(heard: bool, down_s: float) -> None:
    """$32 at $16/h are two hours from the request on, a save and the machine's end included."""
    seconds = ends_after_s(switch(), heard=heard)
    paid_s = 600 + seconds + 1.5 * 40 + 60 + down_s
    assert 7200 - 180 - 10 <= paid_s <= 7200
    assert 18 + 16 * paid_s / 3600 <= 50


def test_before_the_first_save_the_plans_save_is_kept_in_reserve() -> None:
    """A state that takes 12 min on its way is not given up after five."""
    assert save_limit_s(None) == 300.0
    planned = switch({**CONDUCTED, "NOTUS_SAVE_MIN": "12"})
    assert planned.save_limit_s(None) == 1.5 * 720 + 60
    assert planned.save_limit_s(40.0) == 1.5 * 40 + 60, "measured"
    with pytest.raises(UserError, match="NOTUS_SAVE_MIN"):
        switch({**CONDUCTED, "NOTUS_SAVE_MIN": "long"})


def test_a_run_that_ends_within_its_budget_is_not_closed_before() -> None:
    """The reserve is half as much again as its last save takes, and that one comes anyway."""

    def ends(total_steps: int) -> bool:
        """By the budget, and not by its last step; a step takes a minute."""
        one = switch({**CONDUCTED, "NOTUS_SAVE_MIN": "20"})
        for minute in range(300):
            now = 1000.0 + 60 * minute
            one.controller.look(beat(minute), now)
            if minute >= total_steps:
                return False
            at = Progress(phase="training", step=minute, total_steps=total_steps, save_s=1200.0)
            if one.verdict(at, away_s=0.0, now_s=now) == "budget":
                return True
        raise AssertionError("it never ends")

    assert not ends(84), "13 min before its first step, 20 for the save, 2 for the teardown: 119 of 120"
    assert ends(86)


def test_a_budget_that_is_gone_already_ends_it_at_once() -> None:
    assert ends_after_s(switch({**CONDUCTED, "NOTUS_SPENT_USD": "49"}), heard=True) == 0


@pytest.mark.parametrize("missing", ["NOTUS_BUDGET_USD", "NOTUS_PRICE_USD_H"])
def test_without_a_budget_or_a_price_none_is_kept(missing: str) -> None:
    assert machine_budget({name: value for name, value in CONDUCTED.items() if name != missing}) is None
    assert machine_budget({**CONDUCTED, missing: ""}) is None


@pytest.mark.parametrize("value", ["many", "-3", "inf", "nan"])
def test_an_amount_that_is_none_is_named(value: str) -> None:
    with pytest.raises(UserError, match=f"NOTUS_SPENT_USD='{value}'"):
        machine_budget({**CONDUCTED, "NOTUS_SPENT_USD": value})


def test_a_controller_is_judged_by_this_machines_clock_alone() -> None:
    """Its own clock may stand, jump or run backwards: only a change is a sign of life."""
    controller = switch().controller
    for minute, told in enumerate((5.0, 4.0, 90000.0, -3.0)):
        controller.look(beat(told), 1000.0 + 60 * minute)
        assert controller.silent_s(1000.0 + 60 * minute) == 0
    controller.look(beat(-3.0), 1180.0 + SILENT_S)
    assert not controller.is_watching(1180.0 + SILENT_S)


def test_a_silence_is_told_once_and_the_next_one_again() -> None:
    controller = switch().controller
    assert not controller.just_fell_silent(1000.0 + SILENT_S - 1)
    assert controller.just_fell_silent(1000.0 + SILENT_S)
    assert not controller.just_fell_silent(9000.0)
    controller.look(beat(1), 9000.0)
    assert not controller.just_fell_silent(9100.0)
    assert controller.just_fell_silent(9000.0 + SILENT_S)


def test_a_run_that_never_had_a_controller_misses_none() -> None:
    alone = switch({"SKYPILOT_CLUSTER_INFO": "{}"})
    assert not alone.controller.just_fell_silent(1e6)
    assert not alone.controller.is_watching(1000.0)


def test_a_hang_ends_the_attempt_where_nobody_looks_after_it() -> None:
    for heard in (True, False):
        one = switch({"NOTUS_PRICE_USD_H": "16", "SKYPILOT_CLUSTER_INFO": "{}"})
        now = 1000.0
        said = set()
        for minute in range(int(2 * HANG_S / 60)):
            now += 60
            if heard:
                one.controller.look(beat(minute), now)
            said.add(one.verdict(TRAINING, away_s=0.0, now_s=now))
        assert said == ({""} if heard else {"", "hung"}), "the controller moves it"


def test_the_budget_counts_this_machines_own_price_once_the_controller_has_told_it() -> None:
    """The environment has the dearest of the places that were asked: one at $70 must not end a run on one at $16."""
    asked = {**CONDUCTED, "NOTUS_PRICE_USD_H": "70"}
    one, alone = switch(asked), switch(asked)
    own = ControllerBeat(time=NOON, launch=1, price_usd_per_hour=16.0)
    hour = 1000.0 + 3600
    one.controller.look(own, hour)
    assert one.verdict(TRAINING, away_s=0.0, now_s=hour) == ""
    assert alone.verdict(TRAINING, away_s=0.0, now_s=hour) == "budget"


def test_an_attempt_without_a_step_keeps_nothing_for_a_save() -> None:
    """The policy started it because the rest can be paid: it may not end itself at step 0 for a save of nothing."""
    left_usd = 16 * (180 + 600 + TEARDOWN_S + 60) / 3600
    tight = {**CONDUCTED, "NOTUS_SPENT_USD": str(50 - left_usd)}
    one = switch(tight)
    one.controller.look(beat(0), 1000.0)
    assert one.verdict(Progress(phase="starting"), away_s=0.0, now_s=1001.0) == ""
    assert one.verdict(TRAINING, away_s=0.0, now_s=1002.0) == "budget"


def test_a_new_phase_is_progress_too() -> None:
    one, now = switch({"SKYPILOT_CLUSTER_INFO": "{}"}), 1000.0
    for phase, traits in BEFORE.items():
        assert one.verdict(Progress(phase=phase), away_s=0.0, now_s=now) == ""
        now += traits.quiet_s
        assert one.verdict(Progress(phase=phase), away_s=0.0, now_s=now) == ""


@pytest.mark.parametrize("phase", sorted(BEFORE_TRAINING))
@pytest.mark.parametrize("where", ["a laptop", "a rented machine", "beside its controller"])
def test_nothing_stands_still_before_the_training_wherever_it_runs(phase: Phase, where: str) -> None:
    limit_s = BEFORE[phase].quiet_s
    one = switch({} if where == "a laptop" else {"SKYPILOT_CLUSTER_INFO": "{}"})
    if where == "beside its controller":
        one.controller.look(beat(0), 1000.0 + 2 * limit_s)
    counted = Progress(phase=phase, done=5)
    assert one.verdict(Progress(phase=phase), away_s=0.0, now_s=1000.0) == ""
    assert one.verdict(counted, away_s=0.0, now_s=999.0 + limit_s) == "", "something has moved"
    moved = counted.model_copy(update={"moved": 77})
    assert one.verdict(moved, away_s=0.0, now_s=998.0 + 2 * limit_s) == ""
    assert one.verdict(moved, away_s=0.0, now_s=997.0 + 3 * limit_s) == ""
    assert one.verdict(moved, away_s=0.0, now_s=999.0 + 3 * limit_s) == "hung"


def test_an_alarm_comes_before_the_end_once_for_each_silence() -> None:
    one, still = switch({}), Progress(phase="compiling")
    limit_s = BEFORE["compiling"].quiet_s
    looks = [one.alarm(still, 1000.0 + second) for second in range(0, int(limit_s), 10)]
    assert looks.count(True) == 1
    assert looks.index(True) * 10 == pytest.approx(limit_s / 2, abs=20)
    again = still.model_copy(update={"moved": 1})
    assert [one.alarm(again, 5000.0), one.alarm(again, 5000.0 + limit_s)] == [False, True]
    assert not one.alarm(TRAINING, 1e6), "of a run that trains the controller does"
    looked_after = switch()
    looked_after.controller.look(beat(0), 9000.0)
    assert not looked_after.alarm(still, 9001.0)


def test_a_bucket_that_is_away_for_long_ends_the_attempt_on_a_rented_machine_only() -> None:
    assert switch().verdict(TRAINING, away_s=BUCKET_AWAY_S + 1, now_s=1001.0) == "bucket away"
    assert switch({}).verdict(TRAINING, away_s=9 * BUCKET_AWAY_S, now_s=1001.0) == "", "a laptop costs nothing"


def test_the_budget_holds_without_the_bucket() -> None:
    one = switch({**CONDUCTED, "NOTUS_SPENT_USD": "49"})
    assert one.verdict(TRAINING, away_s=1e6, now_s=1001.0) == "budget"


@pytest.mark.parametrize(
    ("uptime", "stat", "age_s"),
    [
        ("5000.25 9000.0\n", "1 (systemd) S 0 " + "0 " * 17 + "25 0\n", 5000.0),  # 25 ticks after the boot
        ("5000.25 9000.0\n", "1 (tini (x) y) S 0 " + "0 " * 17 + "440025 0\n", 600.0),  # a container
        ("garbled", "1 (systemd)", SET_UP_S),
    ],
)
def test_the_age_of_a_machine_is_that_of_its_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uptime: str, stat: str, age_s: float
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    (tmp_path / "1").mkdir()
    (tmp_path / "uptime").write_text(uptime)
    (tmp_path / "1/stat").write_text(stat)
    assert machine_age_s(tmp_path) == pytest.approx(age_s)


def test_a_machine_that_does_not_tell_its_age_is_assumed_to_be_old(tmp_path: Path) -> None:
    assert machine_age_s(tmp_path) == SET_UP_S
