"""Limits of a live run when something around it fails: the lines of docs/concepts/what-holds.md, by the conductor."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from checkpoints.run_log.event_kinds import MachineGone, ReleaseFailed
from checkpoints.run_log.event_log import Diary, of_kind, read_events
from checkpoints.run_log.launches import take_launch_number
from checkpoints.run_log.stop_request import read_request
from checkpoints.util.clock import FakeClock
from launcher.policy.decide import decide
from launcher.policy.model import Launch, Move, Observation, Place, PlaceState, Running, Stay
from launcher.policy.run_history import machine_now, machines, spent_usd
from launcher.policy.settings import Settings
from launcher.sky.strategy.run_controller import LimitReached, RunController
from tests.support.conducted import LAMBDA, SPOT_A, Run, away
from tests.support.places import ON_DEMAND, A, B, place


def fails_once(run: Run) -> None:
    release = run.sky.release
    failures = [RuntimeError("Failed to terminate the cluster")]

    async def first_fails() -> None:
        if failures:
            raise failures.pop()
        await release()

    run.sky.release = first_fails  # type: ignore[method-assign]


def test_a_machine_that_could_not_be_given_back_is_booked_and_given_back_at_the_next_look() -> None:
    run = Run({LAMBDA: 1}, budget_usd=140.0)
    run.launch()
    fails_once(run)
    run.clock.sleep(8.72 * 3600)
    run.look()
    events = read_events(run.store)
    (failure,) = [failed for _, failed in of_kind(events, ReleaseFailed)]
    assert (failure.tries, failure.why) == (1, "budget")
    assert machine_now(machines(events)) is not None, "it is billed on"
    run.clock.sleep(60)
    run.look()
    assert not run.sky.up
    events = read_events(run.store)
    (gone,) = [gone for _, gone in of_kind(events, MachineGone)]
    assert gone.why == "budget"
    assert spent_usd(machines(events), run.clock.now()) == pytest.approx(139.9 + 16 / 60, abs=0.1), "until it was gone"


def test_the_books_say_gone_only_after_the_cloud_does() -> None:
    run = Run({SPOT_A: 2, LAMBDA: 1})
    run.launch()
    run.train(1, minutes=10, ended="preempted", notice="gcp")
    noted: list[bool] = []
    release = run.sky.release

    async def looks_into_the_diary() -> None:
        noted.append(bool(run.events("machine_gone")))
        await release()

    run.sky.release = looks_into_the_diary  # type: ignore[method-assign]
    run.recover()
    assert noted == [False]
    assert len(run.events("machine_gone")) == 1


def test_a_recovery_waits_for_a_teardown_that_fails() -> None:
    run = Run({SPOT_A: 2, LAMBDA: 1})
    run.launch()
    run.train(1, minutes=10, ended="preempted", notice="gcp")
    fails_once(run)
    run.recover()
    assert run.sky.waits == [60.0]
    assert [event.kind for event in read_events(run.store) if event.kind in ("release_failed", "machine_gone")] == [
        "release_failed",
        "machine_gone",
    ]


def test_limits_hold_while_the_bucket_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({LAMBDA: 1}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=1)
    run.look()
    away(run, monkeypatch)
    began = run.clock.now()
    while run.sky.up:
        run.clock.sleep(60)
        run.look()
        assert run.clock.now() - began < timedelta(hours=12)
    assert 16.0 * (run.clock.now() - began) / timedelta(hours=1) < 150.0


def test_a_hang_is_counted_on_after_a_restart_of_the_controller() -> None:
    run = Run({LAMBDA: 3})
    run.launch()
    run.train(1, minutes=1)
    for minute in range(60):
        run.clock.sleep(60)
        run.beat(1, 10)
        if minute == 25:
            run.restarted()
        run.look()
        if (request := read_request(run.store)) is not None:
            assert request.action == "move"
            assert 44 <= minute <= 48
            return
    pytest.fail("nothing was moved")


def test_a_laptop_that_slept_takes_no_machine_for_stuck() -> None:
    run = Run({LAMBDA: 1})
    run.launch()
    run.train(1, minutes=1)
    run.look()
    run.clock.set(run.clock.now() + timedelta(hours=9))
    run.look()
    assert read_request(run.store) is None
    assert run.sky.up


def late(hours: float, **more: Any) -> Observation:
    known = (PlaceState(A), PlaceState(replace(ON_DEMAND, price_usd_per_hour=30.0)))
    running = Running(ON_DEMAND, 2.0)
    return Observation(known, 8.0, 0.25, running, deadline_h=8.0 - hours, whole_h=12.0, **more)


def test_a_minute_late_on_paper_is_no_cliff() -> None:
    assert isinstance(decide(late(-0.1)), Stay), "it makes it, but has no room for a try"
    assert isinstance(decide(late(1 / 60)), Stay), "a healthy machine on demand is kept"
    assert isinstance(decide(late(2.0)), Stay)
    assert isinstance(decide(late(4.0)), Move), "hopeless: the cheapest way"
    nowhere = replace(late(1 / 60), running=None)
    action = decide(nowhere)
    assert isinstance(action, Launch)
    assert not action.places[0].spot, "and it still hurries"


def test_a_budget_keeps_the_way_to_the_end_on_demand() -> None:
    """8 h at $16 and a start are $132."""
    on_demand = place("us-z", 16.0, spot=False)

    def first(budget: float) -> Place:
        action = decide(Observation((PlaceState(A), PlaceState(on_demand)), 8.0, 0.25, budget_left_usd=budget))
        assert isinstance(action, Launch)
        return action.places[0]

    assert first(150.0) == A
    assert first(136.0) == on_demand, "a machine on spot that brings nothing would cost $3.50"
    assert first(120.0) == A, "the budget can't pay the way on demand anyway"

    def running(budget: float, *, reserve: bool) -> Observation:
        there = Running(A, 2.0, reserve=reserve)
        return Observation((PlaceState(A), PlaceState(on_demand)), 8.0, 0.25, there, budget_left_usd=budget)

    action = decide(running(135.5, reserve=True))
    assert isinstance(action, Move)
    assert (action.cause, action.urgent) == ("budget", True)
    assert isinstance(decide(running(150.0, reserve=True)), Stay)
    assert isinstance(decide(running(135.5, reserve=False)), Stay), "it came when the budget could not pay it"


def test_a_price_that_rises_is_booked_from_then_on() -> None:
    run = Run({SPOT_A: 1, LAMBDA: 1})
    run.launch()
    run.train(1, minutes=58.4)
    run.sky.stock = {replace(SPOT_A, price_usd_per_hour=14.0): 1, LAMBDA: 1}
    run.look()
    assert [event.data["place"]["price_usd_per_hour"] for event in run.events("price_changed")] == [14.0]
    run.clock.sleep(3600)
    run.beat(1, 11)
    run.look()
    assert len(run.events("price_changed")) == 1
    assert spent_usd(machines(read_events(run.store)), run.clock.now()) == pytest.approx(10.0 + 14.0, rel=0.01)


def test_a_launching_machine_whose_clock_is_ahead_ends_no_machine() -> None:
    run = Run({LAMBDA: 1}, budget_usd=200.0)
    Diary(run.store, 0, FakeClock(run.clock.now() + timedelta(minutes=10))).write("planned", strategy="NOTUS")
    run.launch()
    run.train(1, minutes=60)
    run.look()
    current = machine_now(machines(read_events(run.store)))
    assert current is not None, "`planned` is of before it"


def test_a_newer_launch_ends_the_older_job() -> None:
    run = Run({LAMBDA: 2})
    run.launch()
    run.train(1, minutes=1)
    run.look()
    number = take_launch_number(run.store, "", run.clock)
    Diary(run.store, 0, run.clock, number).write("planned", strategy="NOTUS")
    run.look()
    assert not run.sky.up
    with pytest.raises(LimitReached, match="launched again"):
        run.recover()


def test_a_job_that_waits_for_a_machine_buys_none_once_a_newer_launch_has_the_run() -> None:
    run = Run({SPOT_A: 0})
    run.sky.after_wait = {SPOT_A: 1}
    wait = run.sky.wait

    async def launched_again_meanwhile(seconds: float, reason: str) -> None:
        await wait(seconds, reason)
        number = take_launch_number(run.store, "", run.clock)
        Diary(run.store, 0, run.clock, number).write("planned", strategy="NOTUS")

    run.sky.wait = launched_again_meanwhile  # type: ignore[method-assign]
    with pytest.raises(LimitReached, match="launched again"):
        run.launch()
    assert run.events("machine_up") == []


def test_a_launch_has_its_number_and_a_restart_goes_on_with_it() -> None:
    run = Run({LAMBDA: 3})
    run.launch()
    assert {event.launch for event in read_events(run.store)} == {1}
    RunController(run.store, run.limits, run.sky, run.clock)
    run.train(1, minutes=1, ended="preempted", notice="gcp")
    run.restarted()
    run.recover()
    assert {event.launch for event in run.events("machine_up")} == {1}
    Diary(run.store, 2, run.clock).write("stopped", step=1)
    run.restarted()
    run.launch()
    assert run.events("machine_up")[-1].launch == 2


def test_a_dear_spot_zone_is_not_taken_where_the_slack_is_worth_more() -> None:
    """$70 while zones at $15 are out for a moment: with hours of slack it waits, with none it takes what there is."""
    dear, cheap = place("us-d", 69.9), place("us-c", 14.9)
    on_demand = place("us-o", 88.0, spot=False)

    def asked(slack_h: float) -> tuple[Place, ...]:
        from launcher.policy.spot.market import SpotMarket, churned

        known = (PlaceState(cheap, refused_h_ago=0.02, out_h=0.02), PlaceState(dear), PlaceState(on_demand))
        market = SpotMarket(churned(0.0, 2), up=True, age_h=1.0)
        action = decide(Observation(known, 12.0, 0.25, deadline_h=12.0 + slack_h, market=market, refusals_in_a_row=5))
        return action.places if isinstance(action, Launch) else ()

    assert dear not in asked(12.0)
    assert asked(0.8), "a machine, whatever it costs"


def test_a_dear_spot_machine_is_left_for_a_cheaper_zone() -> None:
    dear, cheap = place("us-d", 69.9), place("us-c", 14.9)
    on_demand = place("us-o", 88.0, spot=False)

    def told(**more: Any) -> Any:
        known = (PlaceState(cheap, refused_h_ago=3.0), PlaceState(dear), PlaceState(on_demand))
        return decide(Observation(known, 12.0, 0.25, Running(dear, 1.0), **more), Settings())

    move = told()
    assert isinstance(move, Move)
    assert move.cause == "cheaper"
    assert isinstance(told(deadline_h=24.0), Move), "half a day of slack bears a try"
    assert isinstance(told(deadline_h=12.6), Stay), "without slack nothing moves"
    assert isinstance(decide(Observation((PlaceState(A), PlaceState(B)), 12.0, 0.25, Running(B, 1.0))), Stay), (
        "$1 is not worth it"
    )
