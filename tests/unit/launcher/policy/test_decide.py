"""What the policy decides: pure, so everything is tried."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.run_log.event_log import Event
from launcher.policy.back_off import FIRST_WAIT_H, LONGEST_WAIT_H
from launcher.policy.decide import decide
from launcher.policy.limits import Limits
from launcher.policy.model import GiveUp, Launch, Move, Observation, Place, PlaceState, Running, Stay, Wait
from launcher.policy.observe import observe
from launcher.policy.run_history import place_data
from launcher.policy.spot.market import Chain, SpotMarket, churned
from tests.support.places import ALL, LAMBDA, ON_DEMAND, A, B, C, place

START = datetime(2026, 11, 24, 20, tzinfo=UTC)


def seen(*places: PlaceState | Place, **more: Any) -> Observation:
    known = tuple(one if isinstance(one, PlaceState) else PlaceState(one) for one in places or ALL)
    return Observation(known, **{"work_left_h": 8.0, "restart_h": 0.25, **more})


def order(observation: Observation) -> tuple[Place, ...]:
    action = decide(observation)
    assert isinstance(action, Launch), action
    return action.places


def test_cheapest_spot_first_then_the_cheapest_on_demand() -> None:
    assert order(seen()) == (A, B, C, LAMBDA, ON_DEMAND)


def test_the_dollars_of_restores_count_in_what_the_slack_is_worth() -> None:
    """On demand, and back to spot later, costs two restores: in another cloud than the bucket's a run waits longer."""
    market = SpotMarket(churned(0.0, 1), up=False, age_h=0.1)

    def waits(restore_usd: float) -> list[bool]:
        spot, on_demand = (replace(place, restore_usd=restore_usd) for place in (B, LAMBDA))
        known = (PlaceState(spot, refused_h_ago=0.001), PlaceState(on_demand))
        slacks = [number / 10 for number in range(5, 40)]
        told = [Observation(known, 12.0, 0.25, deadline_h=12.0 + slack, market=market) for slack in slacks]
        return [isinstance(decide(one), Wait) for one in told]

    free, dear = waits(0.0), waits(6.0)
    assert all(later for before, later in zip(free, dear, strict=True) if before)
    assert sum(dear) > sum(free)


def test_a_place_that_was_just_taken_away_comes_after_the_untried_ones() -> None:
    assert order(seen(PlaceState(A, preempted_h_ago=0.1), B, LAMBDA)) == (B, A, LAMBDA)
    assert order(seen(PlaceState(A, preempted_h_ago=2.0), B, LAMBDA)) == (A, B, LAMBDA)
    assert order(seen(PlaceState(A, refused_h_ago=0.05), B, LAMBDA)) == (B, A, LAMBDA)


def test_waits_grow_where_nobody_has_a_machine_and_end() -> None:
    waits = []
    for count in range(1, 8):
        action = decide(
            seen(PlaceState(A, refused_h_ago=0.001), PlaceState(LAMBDA, refused_h_ago=0.001), refusals_in_a_row=count)
        )
        assert isinstance(action, Wait)
        waits.append(action.hours)
    assert waits[0] == FIRST_WAIT_H
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT_H
    assert order(seen(PlaceState(A, refused_h_ago=FIRST_WAIT_H), refusals_in_a_row=3)) == (A,)


def test_near_the_deadline_on_demand_goes_first() -> None:
    assert order(seen(deadline_h=20.0))[0] == A
    assert order(seen(deadline_h=8.5)) == (LAMBDA, ON_DEMAND, A, B, C)


def test_a_spot_machine_is_left_in_time_for_the_deadline() -> None:
    running = Running(A, 1.0)
    assert isinstance(decide(seen(running=running, deadline_h=9.0)), Stay)
    assert isinstance(decide(seen(running=running, deadline_h=8.45)), Move)
    too_late = decide(seen(running=running, deadline_h=8.1))
    assert isinstance(too_late, Stay), "moving would only make it later"
    assert isinstance(decide(seen(A, B, running=running, deadline_h=8.45)), Stay), "there is no safe place"


def spot_is_out(hours: float) -> dict[str, Any]:
    return {"market": SpotMarket(Chain(), up=False, age_h=hours)}


def test_slack_waits_for_spot_and_little_of_it_buys_on_demand() -> None:
    """8 h of work. Without a deadline nobody waits; with a day there is time to, with half an hour there is not."""
    refused = [PlaceState(known, refused_h_ago=0.001) for known in (A, B, C)]
    assert order(seen(*refused, LAMBDA))[-1] == LAMBDA
    waits = [
        decide(seen(*refused, LAMBDA, deadline_h=24.0, refusals_in_a_row=count, **spot_is_out(0.1)))
        for count in (1, 3, 20)
    ]
    assert [round(wait.hours * 60, 1) for wait in waits if isinstance(wait, Wait)] == [1.0, 2.5, 4.9], "the back-off"
    assert order(seen(*refused, LAMBDA, deadline_h=8.6, **spot_is_out(0.1)))[0] == LAMBDA


def test_a_spot_market_that_answers_again_is_asked_for_spot_alone() -> None:
    answered = seen(PlaceState(A, refused_h_ago=0.5), B, LAMBDA, deadline_h=24.0, market=SpotMarket(Chain(), True, 1.0))
    assert order(answered) == (A, B)
    just_taken = seen(
        PlaceState(A, preempted_h_ago=0.1), B, LAMBDA, deadline_h=24.0, market=SpotMarket(Chain(), True, 1.0)
    )
    assert order(just_taken) == (B, A)


def test_with_the_market_out_and_on_demand_sold_out_too_it_waits() -> None:
    nothing = [PlaceState(known, refused_h_ago=0.001) for known in (A, LAMBDA)]
    assert isinstance(decide(seen(*nothing, deadline_h=8.6, **spot_is_out(0.1))), Wait)


def test_the_market_is_out_since_the_first_refusal_in_a_row() -> None:
    def market(*told: Event, at: float) -> SpotMarket | None:
        limits = Limits(hours=8, deadline=START + timedelta(hours=24))
        return observe(told, None, (A, B, LAMBDA), limits, START + timedelta(hours=at)).market

    def refusal(hours: float, *where: Place) -> Event:
        data = {"places": [place_data(one) for one in where]}
        time = START + timedelta(hours=hours)
        return Event(time=time, id=f"{hours:012.3f}", kind="no_capacity", attempt=0, data=data)

    assert market(at=0.0) == SpotMarket(churned(0.0, 2), True, 1.0)
    only_one = market(refusal(0, A), at=1.0)
    assert only_one is not None
    assert only_one.up
    out = market(refusal(0, A), refusal(0.5, B), refusal(1, A, B), at=2.0)
    assert out is not None
    assert (out.up, out.age_h) == (False, 1.5)


def test_a_deadline_that_is_lost_binds_nobody() -> None:
    assert order(seen(deadline_h=-1.0))[0] == A
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.6), deadline_h=-1.0)), Move)


def test_a_spot_machine_is_not_thrown_away_for_one_that_is_sold_out() -> None:
    sold_out = PlaceState(LAMBDA, refused_h_ago=0.1)
    assert isinstance(decide(seen(A, sold_out, running=Running(A, 1.0), deadline_h=8.45)), Stay)
    assert isinstance(decide(seen(A, sold_out, ON_DEMAND, running=Running(A, 1.0), deadline_h=8.45)), Move)


def test_nothing_is_started_that_cannot_be_paid() -> None:
    assert order(seen(budget_left_usd=100.0)) == (A, B, C)  # 8.25 h x $12 = $99
    assert order(seen(budget_left_usd=84.0)) == (A,)
    action = decide(seen(budget_left_usd=80.0))
    assert isinstance(action, GiveUp)
    assert action.limit == "budget"
    assert "$80.00 left" in action.reason
    assert "$82.50" in action.reason


def test_a_machine_is_given_back_before_the_budget_is_gone() -> None:
    assert isinstance(decide(seen(running=Running(A, 1.0), budget_left_usd=5.0)), Stay)
    assert isinstance(decide(seen(running=Running(A, 1.0), budget_left_usd=0.9)), GiveUp)


def test_back_to_spot_after_a_while_where_it_pays() -> None:
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.1))), Stay)
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.6))), Move)
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.6), failed_moves=1)), Stay)
    assert isinstance(decide(seen(running=Running(LAMBDA, 1.1), failed_moves=1)), Move)
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.6), work_left_h=0.5)), Stay), "too little is left"
    assert isinstance(decide(seen(running=Running(LAMBDA, 0.6), deadline_h=8.5)), Stay), "the deadline is too near"
    assert isinstance(decide(seen(LAMBDA, ON_DEMAND, running=Running(LAMBDA, 9.0))), Stay), "no spot was asked for"


def test_a_machine_on_demand_is_not_left_for_a_start_that_was_long() -> None:
    """An hour to its first step: it has worked for six minutes, and half an hour is what a try takes."""
    just_began = Running(LAMBDA, 1.1, start_h=1.0)
    assert isinstance(decide(seen(running=just_began)), Stay)
    assert isinstance(decide(seen(running=replace(just_began, age_h=1.6))), Move)


def test_a_machine_on_demand_is_not_left_before_the_way_to_the_end_has_a_price() -> None:
    """With a budget: what it takes to come back may be more than is left."""
    running = Running(LAMBDA, 0.6)
    assert isinstance(decide(seen(running=running, budget_left_usd=400.0, measured=False)), Stay)
    assert isinstance(decide(seen(running=running, budget_left_usd=400.0)), Move)


def test_a_budget_that_is_a_little_short_on_paper_still_buys_on_demand() -> None:
    """8.25 h x $16 = $132. Speeds and starts are estimates."""
    assert order(seen(LAMBDA, budget_left_usd=125.0)) == (LAMBDA,)
    assert isinstance(decide(seen(LAMBDA, budget_left_usd=115.0)), GiveUp)


def test_a_move_pays_for_its_restores_too() -> None:
    """3 h of work: spot saves $18, and trying costs $9 of restarts; three ways of a checkpoint are $15 more."""
    abroad = replace(A, restore_usd=5.0), replace(LAMBDA, restore_usd=5.0)
    assert isinstance(decide(seen(A, LAMBDA, running=Running(LAMBDA, 0.6), work_left_h=3.0)), Move)
    assert isinstance(decide(seen(*abroad, running=Running(abroad[1], 0.6), work_left_h=3.0)), Stay)
    far = replace(A, restore_usd=20.0)
    assert order(seen(far, LAMBDA)) == (LAMBDA,), "$10 an hour, and $20 every 2.7 h"


def test_the_store_and_the_restore_are_part_of_the_way_to_the_end() -> None:
    abroad = replace(A, restore_usd=5.0)
    assert order(seen(abroad, budget_left_usd=88.0)) == (abroad,)  # 8.25 h x $10 + $5
    assert isinstance(decide(seen(abroad, budget_left_usd=87.0)), GiveUp)
    assert order(seen(abroad, budget_left_usd=87.0, restores=False)) == (abroad,), "the first machine has none"
    assert isinstance(decide(seen(A, budget_left_usd=83.0, store_usd_per_h=0.2)), GiveUp)


def test_a_machine_that_is_still_set_up_is_not_left_for_spot() -> None:
    """A search of two minutes and a set-up of half an hour are no time on demand."""
    in_set_up = Running(LAMBDA, 3.0, trained=False)
    assert isinstance(decide(seen(running=in_set_up)), Stay)
    answering = SpotMarket(Chain(), up=True, age_h=1.0)
    assert isinstance(decide(seen(running=in_set_up, deadline_h=48.0, market=answering)), Stay)
    assert isinstance(decide(seen(running=replace(in_set_up, trained=True), deadline_h=48.0, market=answering)), Move)


DEAR = place("us-d", 30.1)
NEARLY = place("us-e", 15.0)


@pytest.mark.parametrize(
    "more",
    [{}, {"deadline_h": 24.0, "market": SpotMarket(Chain(), True, 1.0)}, {"deadline_h": 8.5}, {"budget_left_usd": 500}],
)
def test_spot_that_is_dearer_than_on_demand_is_not_asked(more: dict[str, Any]) -> None:
    assert order(seen(DEAR, LAMBDA, **more)) == (LAMBDA,)
    assert DEAR not in order(seen(A, DEAR, LAMBDA, **more))
    assert order(seen(NEARLY, LAMBDA, **more)) == (LAMBDA,), "$15.00 and its restarts are more than $16"
    assert order(seen(NEARLY, LAMBDA, hazard_per_h=0.01)) == (NEARLY, LAMBDA)


def test_dear_spot_is_asked_where_on_demand_is_sold_out_or_cannot_be_paid() -> None:
    assert order(seen(DEAR, PlaceState(LAMBDA, refused_h_ago=0.05))) == (DEAR, LAMBDA)
    assert order(seen(A, ON_DEMAND, budget_left_usd=90.0)) == (A,)
    assert order(seen(DEAR)) == (DEAR,)


def test_dear_spot_is_left_for_on_demand_after_a_while() -> None:
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.4))), Stay)
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.6))), Move)
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.6), failed_moves=1)), Stay)
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.6, trained=False))), Stay)
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.6), work_left_h=0.5)), Stay)
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(DEAR, 0.6), deadline_h=8.1)), Stay), (
        "made here, not there"
    )
    sold_out = PlaceState(LAMBDA, refused_h_ago=0.2)
    assert isinstance(decide(seen(DEAR, sold_out, running=Running(DEAR, 0.6))), Stay)


def test_nobody_leaves_on_demand_for_spot_that_its_restarts_make_dearer() -> None:
    assert isinstance(decide(seen(DEAR, LAMBDA, running=Running(LAMBDA, 9.0), work_left_h=99.0)), Stay)
    assert isinstance(decide(seen(NEARLY, LAMBDA, running=Running(LAMBDA, 9.0), work_left_h=99.0)), Stay)


priced_places = st.builds(
    PlaceState,
    st.builds(
        Place,
        cloud=st.just("gcp"),
        region=st.just("us"),
        zone=st.text("abc", min_size=1, max_size=3),
        gpus=st.just("A100:8"),
        spot=st.booleans(),
        price_usd_per_hour=st.floats(1, 40),
    ),
    st.none() | st.floats(0, 10),
    st.none() | st.floats(0, 10),
)


@given(
    st.lists(priced_places, max_size=6, unique_by=lambda known: known.place),
    st.floats(0.1, 30),
    st.none() | st.floats(-5, 60),
    st.none() | st.floats(0, 1000),
    st.none() | st.builds(SpotMarket, st.just(Chain()), st.booleans(), st.floats(0, 10)),
    st.floats(0, 3),
)
def test_no_launch_names_spot_first_that_is_dearer_than_on_demand(
    places: list[PlaceState],
    work: float,
    deadline: float | None,
    budget: float | None,
    market: SpotMarket | None,
    hazard: float,
) -> None:
    action = decide(
        Observation(
            tuple(places), work, 0.25, deadline_h=deadline, budget_left_usd=budget, hazard_per_h=hazard, market=market
        )
    )
    if not isinstance(action, Launch) or not action.places[0].spot:
        return
    for known in places:
        refused = known.refused_h_ago is not None and known.refused_h_ago < LONGEST_WAIT_H
        paid = budget is None or (work + 0.25) * known.place.price_usd_per_hour <= budget
        if not known.place.spot and not refused and paid:
            assert action.places[0].price_usd_per_hour < known.place.price_usd_per_hour


known_places = st.builds(
    PlaceState,
    st.sampled_from(ALL),
    st.none() | st.floats(0, 10),
    st.none() | st.floats(0, 10),
)


@given(
    st.lists(known_places, max_size=6, unique_by=lambda known: known.place),
    st.none() | st.sampled_from(ALL),
    st.floats(0, 30),
    st.none() | st.floats(-5, 60),
    st.none() | st.floats(-5, 1000),
    st.integers(0, 20),
)
def test_what_a_decision_never_does(
    places: list[PlaceState], at: Place | None, work: float, deadline: float | None, budget: float | None, count: int
) -> None:
    running = None if at is None else Running(at, 1.0)
    observation = Observation(tuple(places), work, 0.25, running, deadline, budget, count, count)
    action = decide(observation)
    assert decide(observation) == action, "pure"
    if running is not None:
        assert isinstance(action, Stay | Move | GiveUp)
        return
    assert isinstance(action, Launch | Wait | GiveUp)
    if isinstance(action, Launch):
        assert len(set(action.places)) == len(action.places)
        assert set(action.places) <= {known.place for known in places}
        for chosen in action.places:
            assert budget is None or (work + 0.25) * chosen.price_usd_per_hour <= budget
        if deadline is not None and work + 0.25 <= deadline <= work + 0.5 and any(not p.spot for p in action.places):
            assert not action.places[0].spot, "spot may not endanger a deadline that on demand can make"


DEAR_ON_DEMAND = Place("aws", "us-east-1", "us-east-1a", "A100:8", False, 40.0)


def on_dear(**more: Any) -> Observation:
    known = more.pop("known", (PlaceState(DEAR_ON_DEMAND), PlaceState(LAMBDA)))
    return seen(*known, running=Running(DEAR_ON_DEMAND, 2.0), **more)


def test_a_dear_machine_on_demand_is_left_for_a_cheaper_one() -> None:
    action = decide(on_dear())
    assert isinstance(action, Move)
    assert (action.cause, action.urgent) == ("cheaper", False)
    assert "lambda" in action.reason


@pytest.mark.parametrize(
    "more",
    [
        {"known": (PlaceState(DEAR_ON_DEMAND), PlaceState(LAMBDA, refused_h_ago=0.2))},
        {"known": (PlaceState(DEAR_ON_DEMAND), PlaceState(LAMBDA, rest_h=1.0))},
        {"known": (PlaceState(DEAR_ON_DEMAND), PlaceState(replace(LAMBDA, price_usd_per_hour=39.5)))},
        {"work_left_h": 0.4},
        {"failed_moves": 3},
        {"deadline_h": 8.3},
        {"budget_left_usd": 1000.0, "measured": False},
    ],
)
def test_and_kept_where_a_move_may_cost_more(more: dict[str, Any]) -> None:
    assert isinstance(decide(on_dear(**more)), Stay)
