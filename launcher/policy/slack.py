"""With a deadline, use the slack to decide: wait for spot, take it, or buy on demand. Pure.

The table (slack_value.py) has one spot price. A place dearer than the cheapest is treated as if it were on demand at
its own price: it is taken if a machine at that price is worth more than the slack spent waiting for the cheapest spot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from launcher.policy.back_off import back_off_h
from launcher.policy.model import Action, Launch, Observation, Place, PlaceState, Wait
from launcher.policy.safety import must_be_safe, unmeasured_h
from launcher.policy.settings import ROUNDING_H, Settings
from launcher.policy.slack_value import NO_RESTORES, Problem, Restores, SlackTable, solve, step_of
from launcher.policy.spot.market import SHORTER_OUT, Chain, SpotMarket, counted
from launcher.policy.work_price import cheapest, in_order, visible_spot_usd

FINER = 3
"""Grid points of slack and work per step of the table. Saves 0.04 % of the cost in replays; more save nothing."""
AS_CHEAP = 1.1
"""Spot at up to this multiple of the cheapest price counts as equally cheap in the table."""
PRICE_STEP = math.log(1.05)
"""Ratios of prices are rounded to steps of 5 %, so that tables are shared."""


def by_slack_value(seen: Observation, market: SpotMarket, worth: Sequence[PlaceState], settings: Settings) -> Action:
    """Decide without a machine, and with a deadline that on demand can meet."""
    spot = [state for state in worth if state.place.spot and not _still_refused(seen, state)]
    slack_h = slack_of(seen)
    wait_h = _until_retry_h(seen, worth, settings)
    wait = Wait(wait_h, "slack_enough", f"{slack_h:.1f} h of slack are enough to wait for spot")
    if all(state.place.spot for state in worth):
        return Launch(_by_price(seen, spot, market, settings), "cheapest", "cheapest first") if spot else wait
    on_demand = in_order(seen, worth, settings, on_demand_first=True)
    buy = Launch(on_demand, "slack_short", "the slack is worth less than on demand costs")
    if not any(state.place.spot for state in worth):
        return buy  # no spot place is worth its price: nothing to wait for
    table = slack_table(seen, market.chain, worth, settings)
    if must_be_safe(seen, settings) or slack_h <= table.at(table.buy, seen.work_left_h, market):
        return buy
    visible = any(state.up_h is not None for state in spot)
    early = visible and slack_h > table.at(table.wait, seen.work_left_h, market)
    taken = () if early else _taken(seen, _by_price(seen, spot, market, settings), market, worth, settings)
    if taken:
        return Launch(taken, "slack_enough", "there is enough slack to try spot, and to absorb a preemption")
    return wait if _can_wait(seen, settings) else buy


def _can_wait(seen: Observation, settings: Settings) -> bool:
    kept_h = (1 + settings.margin) * seen.restart_h + unmeasured_h(seen)
    return slack_of(seen) - settings.check_h >= kept_h - ROUNDING_H


def _taken(
    seen: Observation, order: Sequence[Place], market: SpotMarket, worth: Sequence[PlaceState], settings: Settings
) -> tuple[Place, ...]:
    """The spot places, in this order, that are worth more than waiting for cheaper spot."""
    lowest = cheapest(worth, spot=True)
    assert lowest is not None
    return tuple(
        place
        for place in order
        if place.price_usd_per_hour <= AS_CHEAP * lowest.price_usd_per_hour
        or slack_of(seen) <= _buys_at(seen, place, market.chain, worth, settings)
    )


def _buys_at(seen: Observation, place: Place, chain: Chain, worth: Sequence[PlaceState], settings: Settings) -> float:
    """The slack below which to pay a place's price instead of waiting for the cheaper ones, which have refused."""
    below = [state for state in worth if state.place.spot and state.place.price_usd_per_hour < place.price_usd_per_hour]
    out_h = min((state.out_h or 0.0 for state in below), default=0.0)
    sooner = counted(len(below)) ** SHORTER_OUT  # with several zones, one of them is back sooner
    chain = replace(chain, down_ends=tuple(rate * sooner for rate in chain.down_ends))
    table = slack_table_against(seen, place, chain, worth, settings)
    return table.at(table.buy, seen.work_left_h, SpotMarket(chain, up=False, age_h=out_h))


def slack_of(seen: Observation) -> float:
    """Hours to the deadline, less the work left."""
    return (seen.deadline_h or 0.0) - seen.work_left_h


def slack_table(seen: Observation, chain: Chain, places: Sequence[PlaceState], settings: Settings) -> SlackTable:
    """The table of the cheapest spot against the cheapest machine on demand."""
    on_demand = cheapest(places, spot=False)
    return slack_table_against(seen, on_demand, chain, places, settings)


def slack_table_against(
    seen: Observation, certain: Place | None, chain: Chain, places: Sequence[PlaceState], settings: Settings
) -> SlackTable:
    """The table of the cheapest spot against a place that is assumed to be certain."""
    spot, price, restores = cheapest(places, spot=True), 1.0, NO_RESTORES
    if spot and certain:
        price = spot.price_usd_per_hour / certain.price_usd_per_hour
        if certain.spot:  # one table for all places of about that price
            price = math.exp(round(math.log(price) / PRICE_STEP) * PRICE_STEP)
        restores = Restores(*(place.restore_usd / certain.price_usd_per_hour for place in (spot, certain)))
    return slack_table_for(seen.work_left_h, slack_of(seen), seen.restart_h, price, chain, settings, restores)


def slack_table_for(
    work_h: float,
    slack_h: float,
    restart_h: float,
    spot_price: float,
    chain: Chain,
    settings: Settings,
    restores: Restores = NO_RESTORES,
) -> SlackTable:
    """The table for the work and the slack left, rounded up so that it is shared and covers all later states.

    `spot_price` and `restores` are ratios to the on-demand price.
    """
    work_h = _round_up(work_h)
    deadline_h = work_h + _round_up(max(0.0, slack_h))
    step_h = step_of(deadline_h, settings.check_h)
    return solve(Problem(work_h, deadline_h, restart_h, spot_price, step_h, chain, FINER, restores))


def _round_up(hours: float) -> float:
    """Round up to 0.75, 6, 48, 384 ... hours."""
    return float(0.75 * 8 ** math.ceil(math.log(max(hours / 0.75, 1.0), 8) - ROUNDING_H))


def _by_price(
    seen: Observation, spot: Sequence[PlaceState], market: SpotMarket, settings: Settings
) -> tuple[Place, ...]:
    """Sort by the price of an hour of work including preemptions; among equals, the longest-lived spell first."""

    def rank(state: PlaceState) -> tuple[float, float, str]:
        return visible_spot_usd(seen, state, market, settings), -(state.up_h or 0.0), state.place.where

    return tuple(state.place for state in sorted(spot, key=rank))


def _still_refused(seen: Observation, state: PlaceState) -> bool:
    """Did it refuse so recently that it is too early to try again?"""
    return state.refused_h_ago is not None and state.refused_h_ago < back_off_h(seen.refusals_in_a_row)


def _until_retry_h(seen: Observation, places: Sequence[PlaceState], settings: Settings) -> float:
    """Time until the first spot place may be tried again; one check interval if none has refused."""
    ago = [state.refused_h_ago for state in places if state.place.spot and state.refused_h_ago is not None]
    left_h = back_off_h(seen.refusals_in_a_row) - max(ago, default=0.0)
    return max(settings.check_h, left_h) if ago else settings.check_h
