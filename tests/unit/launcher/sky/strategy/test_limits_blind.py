"""Limits of a live run whose controller can't read the bucket, or the prices, or reads odd ones."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from checkpoints.errors import StoreError, UserError
from checkpoints.run_log.event_kinds import AttemptEnded, Failed, Finished, Payload, PriceChanged, Stopped
from checkpoints.run_log.event_log import Diary, of_kind, read_events
from checkpoints.run_log.event_order import end_of_run
from checkpoints.run_log.launches import launch_number_of, take_launch_number
from checkpoints.run_log.run_record import read_controller_beat
from checkpoints.run_log.stop_request import ask, read_request
from launcher.policy.model import Place
from launcher.policy.run_history import machines, spent_usd
from launcher.sky.strategy.run_controller import RunController
from tests.support.conducted import LAMBDA, SPOT_A, Run, away


def back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert read_events(run.store)


def test_a_bucket_that_cannot_be_read_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({LAMBDA: 1})
    run.launch()
    run.train(1, minutes=1)
    run.look()
    away(run, monkeypatch)
    for _ in range(120):
        run.clock.sleep(60)
        run.look()
    assert run.sky.up, "it trains on, as far as anyone can tell"
    back(run, monkeypatch)
    run.look()
    assert read_request(run.store) is None
    for _ in range(50):  # and now nothing is new although it could be read
        run.clock.sleep(60)
        run.look()
    request = read_request(run.store)
    assert request is not None
    assert request.action == "move"


def test_a_deadline_does_not_wait_for_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({LAMBDA: 5})
    run.limits = replace(run.limits, deadline=run.clock.now() + timedelta(hours=14))
    run.restarted()
    run.launch()
    run.train(1, minutes=30)
    run.look()
    run.sky.up = False  # taken away
    away(run, monkeypatch)
    waits = 0
    while not run.sky.up:
        try:
            run.recover()
        except StoreError:
            waits += 1
            run.clock.sleep(60)
        assert waits < 600, "it waits for the bucket while there is time, and no longer"
    assert waits > 30
    assert run.limits.deadline is not None
    left_h = (run.limits.deadline - run.clock.now()) / timedelta(hours=1)
    assert left_h > 8.25, "the way to the end on demand"


def test_without_a_deadline_it_waits_for_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run({LAMBDA: 5})
    run.launch()
    run.train(1, minutes=30)
    run.look()
    run.sky.up = False
    away(run, monkeypatch)
    run.clock.sleep(20 * 3600)
    with pytest.raises(StoreError):
        run.recover()


class NoPrices:
    """SkyPilot's catalog is away."""

    async def places(self) -> list[Place]:
        raise UserError("no price list", "fetch one")


def test_a_new_controller_without_prices_keeps_the_limits_of_a_running_machine() -> None:
    run = Run({LAMBDA: 1}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=1)
    run.restarted()
    run.sky.places = NoPrices().places  # type: ignore[method-assign]
    began = run.clock.now()
    while run.sky.up:
        run.clock.sleep(60)
        run.beat(1, 10)
        run.look()
        assert run.clock.now() - began < timedelta(hours=12)
    assert 16.0 * (run.clock.now() - began) / timedelta(hours=1) < 150.0


def test_a_look_that_could_not_decide_shows_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine looks for hangs itself where it hears of no controller."""
    run = Run({LAMBDA: 1})
    run.launch()
    run.train(1, minutes=1)
    run.look()
    before = read_controller_beat(run.store)

    def broken(*_: object) -> None:
        raise UserError("a decision that can't be made", "")

    monkeypatch.setattr("launcher.sky.strategy.run_controller.observe", broken)
    run.clock.sleep(60)
    with pytest.raises(UserError):
        run.look()
    assert read_controller_beat(run.store) == before


def test_a_rise_that_looks_wrong_is_booked_all_the_same() -> None:
    """The zone is dropped from what may be asked, because its price is 3.5 times its neighbours'."""
    run = Run({SPOT_A: 1, LAMBDA: 1}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=1)
    run.clock.sleep(3600)
    run.beat(1, 40)
    del run.sky.stock[SPOT_A]
    run.sky.listed[SPOT_A] = 35.0
    run.look()
    (change,) = [change for _, change in of_kind(read_events(run.store), PriceChanged)]
    assert change.place.price_usd_per_hour == 35.0
    before = spent_usd(machines(read_events(run.store)), run.clock.now())
    later = run.clock.now() + timedelta(hours=1)
    assert spent_usd(machines(read_events(run.store)), later) - before == pytest.approx(35.0)


def test_a_fall_that_looks_wrong_is_not_believed() -> None:
    run = Run({SPOT_A: 1, LAMBDA: 1})
    run.launch()
    run.train(1, minutes=1)
    del run.sky.stock[SPOT_A]
    run.sky.listed[SPOT_A] = 0.1
    run.look()
    assert not of_kind(read_events(run.store), PriceChanged)


def test_an_empty_price_list_ends_no_run() -> None:
    run = Run({SPOT_A: 3, LAMBDA: 3})
    run.launch()
    run.train(1, minutes=10, ended="preempted", notice="gcp")
    run.look()

    async def nothing() -> list[Place]:
        return []

    run.sky.places = nothing  # type: ignore[method-assign]
    run.recover()
    assert run.sky.up, "it asks what it knew a minute ago"


def test_two_plain_launches_know_their_own_numbers_after_a_restart() -> None:
    """Of `sky jobs launch` twice: neither job was told a number."""
    run = Run({LAMBDA: 3})
    old = RunController(run.store, run.limits, run.sky, run.clock, job="u/1")
    new = RunController(run.store, run.limits, run.sky, run.clock, job="u/2")
    run.conductor = old
    run.launch()
    run.conductor = new
    run.sky.up = False
    run.launch()
    assert (launch_number_of(run.store, "u/1"), launch_number_of(run.store, "u/2")) == (1, 2)
    run.conductor = RunController(run.store, run.limits, run.sky, run.clock, job="u/1")
    released = run.sky.released
    run.look()
    assert run.sky.released == released + 1, "superseded: its machine is given back"
    run.conductor = RunController(run.store, run.limits, run.sky, run.clock, job="u/2")
    run.sky.up = True
    run.look()
    assert run.sky.up


def test_a_job_that_never_took_a_number_goes_on_with_the_newest() -> None:
    run = Run({LAMBDA: 1})
    number = take_launch_number(run.store, clock=run.clock)
    Diary(run.store, 0, run.clock, number).write("planned", strategy="NOTUS")
    assert launch_number_of(run.store, "u/7") == 0


def test_a_machine_that_the_diary_never_heard_of_is_found_and_booked() -> None:
    """It came while the bucket was away, and the process that would have noted it later is gone."""
    run = Run({LAMBDA: 2}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=10, ended="preempted", notice="gcp")
    run.recover()
    for event in run.events("machine_up")[1:]:
        run.store.delete(event.key)
    assert len(machines(read_events(run.store))) == 1
    run.restarted()
    run.look()
    spells = machines(read_events(run.store))
    assert run.sky.mine is not None
    assert (len(spells), spells[-1].until, spells[-1].since) == (2, None, run.sky.mine[1])
    began = run.clock.now()
    while run.sky.up:
        run.clock.sleep(60)
        run.look()
        assert run.clock.now() - began < timedelta(hours=12)


def test_a_new_controller_without_prices_asks_for_no_machine_that_it_cannot_describe() -> None:
    """What it knows of the running machine keeps the limits; SkyPilot's resources for a new one are in the list."""
    run = Run({LAMBDA: 2})
    run.launch()
    run.train(1, minutes=1)
    run.restarted()
    places, run.sky.places = run.sky.places, NoPrices().places  # type: ignore[method-assign]
    run.look()
    run.sky.up = False
    with pytest.raises(UserError, match="no price list"):
        run.recover()
    run.sky.places = places  # type: ignore[method-assign]
    run.recover()
    assert run.sky.up


def test_a_stop_that_could_only_be_read_buys_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket goes away between the request and its withdrawal, and the deadline is near."""
    run = Run({LAMBDA: 3})
    run.limits = replace(run.limits, deadline=run.clock.now() + timedelta(hours=9))
    run.restarted()
    run.launch()
    run.train(1, minutes=10)
    run.look()
    run.sky.up = False
    ask(run.store, "stop", 1, "asked by its user", run.clock)

    def refuse(*_: object) -> None:
        raise StoreError("no route to the bucket")

    monkeypatch.setattr("launcher.sky.strategy.run_controller.withdraw", refuse)
    with pytest.raises(StoreError):
        run.recover()
    assert not run.sky.up


def test_a_machine_whose_attempt_said_its_last_word_is_booked_once() -> None:
    """Until SkyPilot sees the job's end, it still has the machine."""
    run = Run({LAMBDA: 2}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=10, ended="user_error")
    for _ in range(3):
        run.look()
        run.clock.sleep(60)
    spells = machines(read_events(run.store))
    assert [(spell.place, spell.ended) for spell in spells] == [(LAMBDA, "user_error")]


@pytest.mark.parametrize("word", [Stopped(limit="budget"), Failed(message="x"), AttemptEnded(outcome="user_error")])
def test_the_last_word_of_a_machine_that_was_cut_off_ends_no_other(word: Payload) -> None:
    run = Run({LAMBDA: 3}, budget_usd=150.0)
    run.launch()
    run.train(1, minutes=10)
    run.sky.up = False
    run.recover()
    run.train(2, minutes=5)
    Diary(run.store, 1, run.clock).write(word)
    assert run.look()
    events = read_events(run.store)
    assert end_of_run(events) is None
    assert [spell.until is None for spell in machines(events)] == [False, True]
    run.sky.up = False
    run.recover()
    assert run.sky.up


def test_a_finished_run_is_finished_whoever_says_so() -> None:
    run = Run({LAMBDA: 3})
    run.launch()
    run.train(1, minutes=10)
    run.sky.up = False
    run.recover()
    Diary(run.store, 1, run.clock).write(Finished(step=1000))
    assert end_of_run(read_events(run.store)) is not None


def test_a_list_without_offers_ends_no_run_that_has_had_a_machine() -> None:
    run = Run({LAMBDA: 3})
    run.launch()
    run.train(1, minutes=10, ended="preempted", notice="gcp")
    run.restarted()
    stock, run.sky.stock = run.sky.stock, {}
    with pytest.raises(UserError, match="no offer for this run"):
        run.recover()
    run.sky.stock = stock
    run.recover()
    assert run.sky.up
