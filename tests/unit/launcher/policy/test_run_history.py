"""The history that the policy decides on: what the diary's events tell of machines, money and work."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from checkpoints.run_log.event_kinds import PlaceRecord
from checkpoints.run_log.event_log import Event
from checkpoints.run_log.run_record import Heartbeat
from launcher.policy.limits import Limits
from launcher.policy.model import Observation, Place, Running
from launcher.policy.observe import observe
from launcher.policy.run_history import (
    machines,
    on_machine,
    place_data,
    place_of,
    spent_usd,
    why_gone,
    work_left_h,
    work_of,
)
from tests.support.places import ALL, LAMBDA, A, B, C

START = datetime(2026, 11, 24, 20, tzinfo=UTC)


class Diary:
    """Events a minute apart, or as told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: Any, minute: float, attempt: int = 0, **data: Any) -> None:
        time = START + timedelta(minutes=minute)
        self.events.append(Event(time=time, id=f"{len(self.events):012d}", kind=kind, attempt=attempt, data=data))

    def up(self, where: Place, minute: float) -> None:
        self.add("machine_up", minute + 2, place=place_data(where), since=at(minute).isoformat())

    def gone(self, where: Place, minute: float, why: str) -> None:
        self.add("machine_gone", minute, place=place_data(where), why=why)

    def observe(self, minute: float, **limits: Any) -> Observation:
        return observe(self.events, None, ALL, Limits(hours=8.0, **limits), at(minute))


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def test_what_was_spent_is_the_sum_of_all_machines() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.gone(A, 60, "preempted")
    diary.up(LAMBDA, 90)
    assert spent_usd(machines(diary.events), at(120)) == pytest.approx(10.0 + 8.0)
    seen_now = diary.observe(120, budget_usd=100.0)
    assert seen_now.budget_left_usd == pytest.approx(82.0)
    assert seen_now.running is not None
    assert (seen_now.running.place, seen_now.running.age_h, seen_now.running.trained) == (LAMBDA, 0.5, False)
    diary.add("finished", 150, attempt=2, step=9)
    assert spent_usd(machines(diary.events), at(600)) == pytest.approx(10.0 + 16.0)


def test_restores_and_the_store_are_spent_too() -> None:
    limits = {"restore_usd": 5.0, "bucket_cloud": "lambda", "store_usd_per_h": 0.5, "budget_usd": 100.0}
    gcp, here = (Limits(hours=8.0, **limits).priced(where) for where in (A, LAMBDA))  # type: ignore[arg-type]
    assert (gcp.restore_usd, here.restore_usd) == (5.0, 0.0)
    diary = Diary()
    assert diary.observe(0, **limits).restores is False
    diary.up(gcp, 0)
    diary.gone(gcp, 60, "preempted")
    diary.up(gcp, 60)
    diary.gone(gcp, 120, "moved")
    diary.up(here, 120)
    now = diary.observe(240, **limits)
    assert now.restores
    assert now.budget_left_usd == pytest.approx(100 - (10 + 10 + 32) - 5 - 4 * 0.5)
    old = PlaceRecord.model_validate(place_data(A).model_dump(exclude={"restore_usd"}))
    assert place_of(old) == A, "an event of an earlier version"


def test_a_machine_has_trained_when_its_own_first_step_is_done() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.add("training", 10, attempt=1, step=1, total_steps=100)
    diary.up(LAMBDA, 60)
    running = diary.observe(90).running
    assert running is not None
    assert not running.trained
    assert running.restart_left_h < 0.1, "it is older than a start is assumed to take"
    diary.add("training", 91, attempt=2, step=11, total_steps=100)
    running = diary.observe(120).running
    assert running == Running(LAMBDA, 1.0, trained=True, start_h=31 / 60)
    assert running.worked_h == pytest.approx(29 / 60)


def test_a_machine_whose_end_nobody_wrote_ends_where_the_next_begins() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.up(B, 60)
    first, second = machines(diary.events)
    assert first.until == at(60)
    assert second.until is None


def test_places_remember_preemptions_and_refusals() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.gone(A, 30, "preempted")
    diary.add("no_capacity", 60, places=[place_data(B)], reasons=[])
    known = {one.place: one for one in diary.observe(90).places}
    assert known[A].preempted_h_ago == pytest.approx(1.0)
    assert known[B].refused_h_ago == pytest.approx(0.5)
    assert (known[C].preempted_h_ago, known[C].refused_h_ago) == (None, None)


def test_a_price_that_moved_is_the_same_place() -> None:
    diary = Diary()
    diary.up(replace(A, price_usd_per_hour=9.0), 0)
    diary.gone(A, 30, "preempted")
    assert diary.observe(60).places[0].preempted_h_ago == pytest.approx(0.5)


def test_rounds_without_a_machine_and_moves_in_vain_are_counted() -> None:
    diary = Diary()
    diary.add("no_capacity", 1, places=[], reasons=[])
    diary.add("no_capacity", 2, places=[], reasons=[])
    assert diary.observe(3).refusals_in_a_row == 2
    diary.up(LAMBDA, 3)
    assert diary.observe(6).refusals_in_a_row == 0
    for minute in (60, 120):
        diary.gone(LAMBDA, minute, "moved")
        diary.up(LAMBDA, minute + 1)
    assert diary.observe(130).failed_moves == 2
    diary.gone(LAMBDA, 180, "moved")
    diary.up(A, 181)
    assert diary.observe(190).failed_moves == 0
    diary.gone(A, 240, "moved")
    diary.up(B, 241)
    assert diary.observe(250).failed_moves == 1, "it left dear spot, and on demand was sold out"
    diary.gone(B, 300, "preempted")
    diary.up(A, 301)
    assert diary.observe(310).failed_moves == 0


@pytest.mark.parametrize(
    ("notice", "outcome", "why"),
    [
        (None, None, "preempted"),
        ("gcp", "preempted", "preempted"),
        ("move", "preempted", "moved"),
        ("SIGTERM", "preempted", "stopped"),
        (None, "failed", "crashed"),
    ],
)
def test_why_a_machine_is_gone(notice: str | None, outcome: str | None, why: str) -> None:
    diary = Diary()
    diary.add("attempt_ended", -10, attempt=1, outcome="preempted", step=1)  # of the machine before
    diary.add("attempt_started", 1, attempt=2)
    diary.up(A, 0)
    if notice:
        diary.add("notice", 30, attempt=2, source=notice)
    if outcome:
        diary.add("attempt_ended", 31, attempt=2, outcome=outcome, step=5)
    assert why_gone(on_machine(diary.events, machines(diary.events), 0)) == why


def test_work_left_is_assumed_first_and_measured_later() -> None:
    diary = Diary()
    assert work_left_h(diary.events, None, 8.0) == 8.0
    diary.add("training", 10, attempt=1, step=1, total_steps=101)
    assert work_left_h(diary.events, None, 8.0) == pytest.approx(8.0)
    diary.add("saved", 30, attempt=1, step=21)  # 20 steps in 20 minutes
    assert work_left_h(diary.events, None, 8.0) == pytest.approx(80 / 60)
    beat = Heartbeat(attempt=1, time=at(36), phase="training", step=27, total_steps=101)
    work = work_of(diary.events, beat, 8.0)
    assert work.left_h == pytest.approx(74 / 60), "what the machine that is up has done counts"
    assert work.unsaved_h == pytest.approx(6 / 60), "and is lost with it"
    assert work.measured


def test_an_upload_is_no_training() -> None:
    """78 steps of 3 min each; a save takes 18 min on its way."""
    diary = Diary()
    diary.add("training", 10, attempt=1, step=1, total_steps=79)
    diary.add("saved", 10 + 5 * 3 + 18, attempt=1, step=6, upload_s=1080.0, commit_s=0.0)
    assert work_left_h(diary.events, None, 78 * 3 / 60) == pytest.approx(73 * 3 / 60)
    diary.add("saved", 10 + 15 * 3 + 18, attempt=1, step=16, upload_s=1080.0, commit_s=0.0)
    assert work_left_h(diary.events, None, 78 * 3 / 60) == pytest.approx(63 * 3 / 60)


def test_the_first_steps_do_not_count_once_there_are_two_saves() -> None:
    """They compile: ten minutes for the first five steps, one for each later one."""
    diary = Diary()
    diary.add("training", 0, attempt=1, step=1, total_steps=101)
    diary.add("saved", 10, attempt=1, step=6)
    diary.add("saved", 30, attempt=1, step=26)
    assert work_left_h(diary.events, None, 8.0) == pytest.approx(75 / 60)


def test_what_closing_takes_is_a_save_as_slow_as_the_newest_or_as_the_plan_says() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.add("training", 10, attempt=1, step=1, total_steps=101)
    assert diary.observe(20).closing_h == pytest.approx((1 + 0.5 + 1.5 * 3 + 1) / 60)
    planned = diary.observe(20, save_h=12 / 60)
    assert planned.closing_h == pytest.approx((1 + 0.5 + 1.5 * 12 + 1) / 60)
    diary.add("saved", 60, attempt=1, step=21, upload_s=24 * 60.0, commit_s=0.0)
    assert diary.observe(61, save_h=12 / 60).closing_h == pytest.approx((1 + 0.5 + 1.5 * 24 + 1) / 60), "measured"


def test_steps_that_were_not_saved_are_not_done_in_the_first_minute_after_a_loss() -> None:
    diary = Diary()
    diary.up(A, 0)
    diary.add("attempt_started", 5, attempt=1)
    diary.add("training", 10, attempt=1, step=1, total_steps=101)
    diary.add("saved", 30, attempt=1, step=21)
    beat = Heartbeat(attempt=1, time=at(36), phase="training", step=27, total_steps=101)
    there = observe(diary.events, beat, ALL, Limits(hours=8.0), at(36))
    assert (there.work_left_h, there.unsaved_h) == (pytest.approx(74 / 60), pytest.approx(6 / 60))
    diary.gone(A, 36.1, "preempted")
    lost = observe(diary.events, beat, ALL, Limits(hours=8.0), at(36.2))
    assert (lost.work_left_h, lost.unsaved_h) == (pytest.approx(80 / 60), 0.0)
    diary.up(B, 37)
    zombie = observe(diary.events, beat, ALL, Limits(hours=8.0), at(45))
    assert (zombie.work_left_h, zombie.unsaved_h) == (pytest.approx(80 / 60), 0.0), "nor on the next machine"


def test_the_deadline_is_what_is_left_of_it() -> None:
    """The last save has to be there, too."""
    assert Diary().observe(60, deadline=at(180)).deadline_h == pytest.approx(2.0 - 3 / 60)
    assert Diary().observe(60, deadline=at(180), save_h=0.5).deadline_h == pytest.approx(1.5)
