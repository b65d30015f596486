"""Effort without progress: machines that bring no new committed step are bounded in number and in dollars."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from checkpoints.run_log.event_log import Event
from launcher.policy.decide import STUCK_H, UNCOMMITTED_H, decide
from launcher.policy.limits import Limits
from launcher.policy.machine_work import FIRST_REST_H, MOST_IN_A_ROW, machine_works, restart_h
from launcher.policy.model import (
    Effort,
    GiveUp,
    Launch,
    Move,
    Observation,
    Paid,
    Place,
    PlaceState,
    Running,
    Stay,
    Wait,
)
from launcher.policy.observe import observe
from launcher.policy.run_history import place_data
from launcher.policy.settings import Settings
from launcher.policy.work_price import spot_usd, work_hour_usd
from tests.support.places import ALL, LAMBDA, ON_DEMAND, A, B

START = datetime(2026, 11, 24, 20, tzinfo=UTC)


class Story:
    """A run's diary: machines one after the other, an attempt on each."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.hour = 0.0
        self.attempts = 0
        self.step = 0

    def machine(
        self, place: Place, hours: float, *, start_h: float = 0.25, steps: int = 0, why: str = "preempted"
    ) -> None:
        begin, before = self.hour, self.attempts
        self._add("machine_up", begin, 0, place=place_data(place), since=at(begin).isoformat(), after_attempt=before)
        if hours > start_h:
            self.attempts += 1
            self._add("attempt_started", begin + start_h / 2, self.attempts)
            self._add("training", begin + start_h, self.attempts, step=self.step + 1, total_steps=1000)
            self._add("under_way", begin + start_h, 0, hours=start_h)
            if steps:
                self.step += steps
                self._add("saved", begin + hours, self.attempts, step=self.step)
        self.hour = begin + hours
        self._add("machine_gone", self.hour, 0, place=place_data(place), why=why)

    def _add(self, kind: str, hour: float, attempt: int, **data: Any) -> None:
        self.events.append(Event(time=at(hour), id=f"{len(self.events):06d}", kind=kind, attempt=attempt, data=data))

    def seen(self, places: tuple[Place, ...] = ALL, after_h: float = 0.0, **limits: Any) -> Observation:
        return observe(self.events, None, places, Limits(hours=8.0, **limits), at(self.hour + after_h))


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def known(seen: Observation, place: Place) -> PlaceState:
    return next(one for one in seen.places if one.place == place)


def test_four_spot_machines_in_a_row_without_a_new_step_send_the_run_on_demand() -> None:
    """So cheap that no price would ever do it."""
    cheap = replace(A, price_usd_per_hour=1.0)
    story = Story()
    for number in range(4):
        assert decide(story.seen((cheap, LAMBDA))).places[0] == cheap, number  # type: ignore[union-attr]
        story.machine(cheap, 0.2)
    action = decide(story.seen((cheap, LAMBDA)))
    assert isinstance(action, Launch)
    assert action.places == (LAMBDA,)


def test_a_zone_that_brings_nothing_is_set_aside_before_its_kind_is() -> None:
    story = Story()
    story.machine(A, 0.2)
    story.machine(A, 0.2)
    seen = story.seen((A, B, LAMBDA))
    assert known(seen, A).rest_h == pytest.approx(FIRST_REST_H)
    assert known(seen, B).rest_h == 0
    assert decide(seen).places[0] == B  # type: ignore[union-attr]
    assert known(story.seen((A, B, LAMBDA), after_h=FIRST_REST_H), A).rest_h == 0, "tried again later"


def test_each_further_machine_in_vain_doubles_the_pause() -> None:
    story = Story()
    for _ in range(5):
        story.machine(A, 0.2)
    assert known(story.seen((A, LAMBDA)), A).rest_h == pytest.approx(2 * FIRST_REST_H)
    story.machine(LAMBDA, 1.0, steps=50, why="moved")
    assert known(story.seen((A, LAMBDA)), A).rest_h == pytest.approx(0.0), "an hour on demand is over"
    story.machine(A, 0.2)
    assert known(story.seen((A, LAMBDA)), A).rest_h == pytest.approx(4 * FIRST_REST_H), (
        "a step elsewhere forgives nothing"
    )


def test_machines_that_commit_steps_set_nothing_aside() -> None:
    story = Story()
    for _ in range(20):
        story.machine(A, 0.6, steps=20)
    seen = story.seen()
    assert seen.effort == Effort(most_usd=4 * 16.0)
    assert all(one.rest_h == 0 for one in seen.places)


def test_on_demand_that_brings_nothing_ends_the_run_with_a_reason() -> None:
    story = Story()
    for _ in range(4):
        story.machine(A, 0.2)
    for _ in range(3):
        story.machine(LAMBDA, 0.2, why="never_ran")
    action = decide(story.seen((A, LAMBDA)))
    assert isinstance(action, GiveUp)
    assert action.limit == "progress"
    assert "7 machines in a row" in action.reason


def test_without_on_demand_a_pause_comes_first_and_the_end_at_last() -> None:
    story = Story()
    for _ in range(4):
        story.machine(A, 0.2)
    action = decide(story.seen((A,)))
    assert isinstance(action, Wait)
    assert (action.cause, action.hours) == ("progress", pytest.approx(FIRST_REST_H))
    for _ in range(MOST_IN_A_ROW - 4):
        story.machine(A, 0.2)
    assert decide(story.seen((A,))).limit == "progress"  # type: ignore[union-attr]


def test_dollars_without_progress_end_a_run_of_few_machines() -> None:
    story = Story()
    story.machine(LAMBDA, 2.5, why="crashed")
    assert isinstance(decide(story.seen((A, LAMBDA))), Launch), "one machine is bad luck"
    story.machine(LAMBDA, 2.5, why="crashed")
    assert decide(story.seen((A, LAMBDA))).limit == "progress"  # type: ignore[union-attr]


def test_a_new_launch_tries_again() -> None:
    story = Story()
    for _ in range(3):
        story.machine(LAMBDA, 0.2)
    assert math.isinf(known(story.seen((A, LAMBDA)), LAMBDA).rest_h)
    story._add("planned", story.hour + 1, 0)
    story.hour += 2
    assert known(story.seen((A, LAMBDA)), LAMBDA).rest_h == 0
    assert story.seen((A, LAMBDA)).effort == Effort(most_usd=4 * 16.0)


def running(**more: Any) -> Observation:
    return Observation((PlaceState(A), PlaceState(LAMBDA)), 8.0, 0.25, replace(Running(A, 2.0), **more))


def test_a_machine_without_progress_is_moved_set_up_included() -> None:
    assert isinstance(decide(running(stuck_h=STUCK_H - 0.01)), Stay)
    for trained in (True, False):
        action = decide(running(stuck_h=STUCK_H, trained=trained))
        assert isinstance(action, Move)
        assert (action.cause, action.urgent) == ("progress", True)
    twice = replace(running(stuck_h=STUCK_H), effort=Effort(1, 5.0, stuck=1))
    assert isinstance(decide(twice), Stay), "after one that was given up, a slow start gets twice the time"
    assert isinstance(decide(replace(running(stuck_h=2 * STUCK_H), effort=twice.effort)), Move)


def test_a_machine_that_trains_and_commits_nothing_is_moved() -> None:
    assert isinstance(decide(running(uncommitted_h=UNCOMMITTED_H - 0.1)), Stay)
    assert isinstance(decide(running(uncommitted_h=UNCOMMITTED_H)), Move)


def test_a_week_without_a_machine_is_the_end() -> None:
    week = Settings().most_wait_h

    def out(hours: float) -> Observation:
        return Observation((PlaceState(A, refused_h_ago=0.0, out_h=hours),), 8.0, 0.25, refusals_in_a_row=2000)

    assert decide(out(week)).limit == "places"  # type: ignore[union-attr]
    waiting = decide(out(week - 1))
    assert isinstance(waiting, Wait)
    assert waiting.hours == pytest.approx(5 / 60), "however many rounds there were"
    not_asked = replace(out(week), places=(*out(week).places, PlaceState(LAMBDA)))
    assert isinstance(decide(not_asked), Launch), "on demand was not asked yet"


def test_an_hour_of_work_costs_what_its_useful_share_says() -> None:
    """Machines that live 12 min on average where a start takes 15: e^(5 x 0.25) machine hours for an hour of work."""
    assert work_hour_usd(10.0, 5.0, 0.25) == pytest.approx(10.0 * math.exp(1.25))
    assert work_hour_usd(10.0, 5.0, 0.25, 2.0) == pytest.approx((10.0 + 5.0 * 2.0) * math.exp(1.25)), "a restore each"
    assert work_hour_usd(10.0, 1e6, 1.0) < math.inf


def test_what_this_run_has_met_of_a_place_is_part_of_its_price() -> None:
    seen, settings = Observation((), 8.0, 0.25, hazard_per_h=0.1), Settings()
    fresh = spot_usd(seen, PlaceState(A), settings)
    spell_ends = spot_usd(seen, PlaceState(A, paid=Paid(hours=6.0, worked_h=0.0)), settings)
    assert spell_ends > 3.5 * fresh, "six hours for nothing"
    useful = spot_usd(seen, PlaceState(A, paid=Paid(hours=6.0, worked_h=5.9)), settings)
    assert useful == pytest.approx(fresh), "good luck makes nothing cheaper than the model says"


def test_what_was_met_of_a_zone_is_believed_without_a_bound_upward() -> None:
    story = Story()
    for _ in range(60):
        story.machine(A, 0.1, start_h=0.05, steps=1)
    hazard = known(story.seen((A, ON_DEMAND)), A).hazard_per_h
    assert hazard is not None
    assert hazard > 5.0, "lives of 6 min; e times the table would be 1.8"


def test_a_start_is_assumed_first_and_measured_later() -> None:
    story = Story()
    assert story.seen().restart_h == 0.25
    story.machine(A, 1.0, start_h=0.7, steps=50)
    slow = story.seen().restart_h
    assert 0.7 <= slow <= 0.7 * 1.15, "slower than assumed is believed at once"
    for _ in range(3):
        story.machine(A, 1.0, start_h=0.1, steps=50)
    assert story.seen().restart_h < 0.4, "and forgotten once the newest were faster"
    for _ in range(6):
        story.machine(A, 1.0, start_h=0.1, steps=50)
    assert 0.1 < story.seen().restart_h < 0.15, "faster little by little"


def test_a_machine_that_has_not_trained_yet_says_how_long_a_start_takes_at_least() -> None:
    story = Story()
    story.machine(A, 0.6, start_h=9.0)
    assert story.seen().restart_h >= 0.6
    hung = Story()
    hung.machine(A, 0.8, start_h=9.0, why="no_progress")
    assert hung.seen().restart_h == 0.25, "one that hung says nothing of a start"


def test_the_attempts_of_a_machine_are_told_by_their_numbers_not_by_its_clock() -> None:
    story = Story()
    story.machine(A, 1.0, steps=50)
    story.machine(B, 1.0, steps=50)
    shifted = [
        event.model_copy(update={"time": event.time - timedelta(hours=3)}) if event.attempt else event
        for event in story.events
    ]
    works = machine_works(shifted)
    assert [work.new_steps for work in works] == [50, 50]
    assert [work.start_h for work in works] == [0.25, 0.25]
    assert restart_h(works, 0.25, at(story.hour)) == pytest.approx(0.25)


def test_a_release_that_fails_makes_no_start_longer() -> None:
    """Billed for hours, and of no use from the first try on."""
    story = Story()
    story._add("machine_up", 0.0, 0, place=place_data(A), since=at(0.0).isoformat(), after_attempt=0)
    story._add("attempt_started", 0.2, 1)
    story._add("attempt_ended", 0.3, 1, outcome="failed", step=0)
    story._add("release_failed", 0.35, 0, place=place_data(A), why="crashed", tries=1, message="403")
    story._add("machine_gone", 2.5, 0, place=place_data(A), why="crashed")
    works = machine_works(story.events)
    assert works[0].spell.usd(at(9)) == pytest.approx(2.5 * A.price_usd_per_hour)
    assert restart_h(works, 0.25, at(2.5)) < 0.45


def test_a_set_up_that_hangs_gets_no_more_time_than_dollars_without_progress_bear() -> None:
    effort = Effort(machines=2, usd=50.0, stuck=2, most_usd=64.0)
    stuck = running(trained=False, stuck_h=0.8, age_h=0.8)
    assert isinstance(decide(replace(stuck, effort=effort._replace(usd=10.0))), Stay)
    assert isinstance(decide(replace(stuck, effort=effort._replace(usd=60.0))), Move)


def test_a_run_that_saves_seldom_is_not_moved_between_two_saves() -> None:
    seldom = replace(running(uncommitted_h=7.0), save_every_h=6.0)
    assert not isinstance(decide(seldom), Move)
    assert isinstance(decide(replace(running(uncommitted_h=9.1), save_every_h=6.0)), Move)


def test_no_place_at_all_is_no_crash() -> None:
    story = Story()
    for _ in range(3):
        story.machine(A, 0.2)
    assert math.isinf(story.seen(()).effort.most_usd)


def test_one_step_for_each_machine_is_no_progress() -> None:
    """Eight hours for 1,000 steps: one of them is worth half a minute of an hour's machine."""
    story = Story()
    for _ in range(3):
        story.machine(LAMBDA, 1.0, steps=1, why="crashed")
    assert story.seen((LAMBDA,)).effort.exhausted
    story = Story()
    for _ in range(20):
        story.machine(LAMBDA, 1.0, steps=10, why="crashed")
    assert not story.seen((LAMBDA,)).effort.exhausted, "0.08 h of an hour: slow, and paid by the useful hour"
