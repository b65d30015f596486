"""A cloud that is asked for a machine, bills one and never has it ready: bounded by what the run can pay, and wait for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from launcher.policy.model import Observation, Place, PlaceState
from launcher.sky.strategy.cloud_api import LaunchParams, Lost, Refused, Up
from launcher.sky.strategy.patience import LEAST_REQUEST_S, request_s
from tests.support.live_world import Always, Faults, Ledger, LiveWorld, Machine, Trainer, alone

SPOT = Place("gcp", "r0", "r0-a", "A100:8", True, 5.6)
ON_DEMAND = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)


def seen(**more: object) -> Observation:
    return Observation((PlaceState(SPOT), PlaceState(ON_DEMAND)), 2.0, 0.25, **more)  # type: ignore[arg-type]


def test_without_limits_nobody_is_hurried() -> None:
    assert math.isinf(request_s(seen(), [SPOT, ON_DEMAND]))


def test_a_request_on_demand_may_take_what_the_budget_pays() -> None:
    assert request_s(seen(budget_left_usd=16.0), [ON_DEMAND]) == pytest.approx(3600, abs=300)
    assert request_s(seen(budget_left_usd=1.0), [ON_DEMAND]) == LEAST_REQUEST_S


def test_a_request_on_spot_leaves_the_way_to_the_end_on_demand() -> None:
    way_usd = 2.25 * 16.0 * 1.02
    assert request_s(seen(budget_left_usd=way_usd + 5.6), [SPOT]) == pytest.approx(3600, abs=300)
    assert request_s(seen(deadline_h=2.25 + 0.5), [SPOT]) == pytest.approx(1800, abs=300)
    assert math.isinf(request_s(seen(deadline_h=2.25 + 0.5), [ON_DEMAND])), "nothing better is waited for"
    assert math.isinf(request_s(seen(deadline_h=1.0), [SPOT])), "it is late anyway"


class SlowOnDemand(LiveWorld):
    """Every request hangs."""

    async def launch_in(self, places: Sequence[Place], told: LaunchParams) -> Up | Lost | Refused:
        asked_h = self.hour
        self.rented = Machine(self.price(places[0]), asked_h, asked_h, 1e9)
        self._sleep(min(46 * 60, told.most_s) / 3600)
        return Lost(places[0], self.moment(asked_h), (), "given up")


def lived(world: LiveWorld) -> Ledger:
    with alone():
        return asyncio.run(world.run())


@pytest.mark.parametrize("budget_usd", [6.0, 12.0, 20.0])
def test_requests_that_hang_do_not_break_the_budget(budget_usd: float) -> None:
    world = SlowOnDemand({ON_DEMAND: Always()}, Trainer(hours=0.1), planned_hours=0.1, budget_usd=budget_usd)
    assert lived(world).spent_usd <= budget_usd + 16.0 * 3 / 60


@pytest.mark.parametrize("room_usd", [4.0, 8.0, 14.0, 20.0])
def test_spot_that_is_never_ready_leaves_the_money_for_on_demand(room_usd: float) -> None:
    budget_usd = (2 + 0.25 + 1 / 60) * 16.0 + room_usd
    world = LiveWorld(
        {SPOT: Always(), ON_DEMAND: Always()},
        Trainer(hours=2.0),
        Faults(never_ready=1.0),
        planned_hours=2.0,
        budget_usd=budget_usd,
    )
    told = lived(world)
    assert told.finished_h is not None
    assert told.spent_usd <= budget_usd + 16.0 * 3 / 60


@pytest.mark.parametrize("room_h", [0.6, 0.8, 1.0, 2.0])
def test_spot_that_is_never_ready_leaves_the_time_for_on_demand(room_h: float) -> None:
    world = LiveWorld(
        {SPOT: Always(), ON_DEMAND: Always()},
        Trainer(hours=2.0),
        Faults(never_ready=1.0),
        planned_hours=2.0,
        deadline_h=2.0 + 0.25 + 1 / 60 + room_h,
    )
    told = lived(world)
    assert told.finished_h is not None
    assert told.finished_h <= 2.0 + 0.25 + 1 / 60 + room_h
