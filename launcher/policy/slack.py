"""What the slack decides where there is a deadline: wait for spot, take it, or buy on demand. Pure.

The table (outlook.py) knows one spot price. A place that is dearer than the cheapest is weighed as if it were on demand
at its own price: it is taken where a machine at that price is worth more than the slack that waiting for the cheapest
spot would take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from launcher.policy.back_off import back_off_h
from launcher.policy.model import Action, Known, Launch, Observation, Place, Wait
from launcher.policy.safety import must_be_safe, unmeasured_h
from launcher.policy.settings import ROUNDING_H, Settings
from launcher.policy.slack_value import NO_RESTORES, Outlook, Problem, Restores, solve, step_of
from launcher.policy.spot.market import SHORTER_OUT, Chain, SpotMarket, counted
from launcher.policy.work_price import cheapest, in_order, visible_spot_usd

FINER = 3
"""Grid points of slack and work in a step of the table: worth 0.04 % of the cost in replays, more are worth nothing."""
AS_CHEAP = 1.1
"""Spot up to so many times the cheapest price is the same market to the table."""
PRICE_STEP = math.log(1.05)
"""Ratios of prices are rounded to steps of 5 %, so that tables are shared."""


def by_outlook(seen: Observation, market: SpotMarket, worth: Sequence[Known], settings: Settings) -> Action:
    """Without a machine, and with a deadline that on demand can make."""
    spot = [known for known in worth if known.place.spot and not _still_refused(seen, known)]
    slack_h = slack_of(seen)
    wait_h = _until_asked_again_h(seen, worth, settings)
    wait = Wait(wait_h, "slack_enough", f"{slack_h:.1f} h of slack are enough to wait for spot")
    if all(known.place.spot for known in worth):
        return Launch(_by_price(seen, spot, market, settings), "cheapest", "cheapest first") if spot else wait
    on_demand = in_order(seen, worth, settings, on_demand_first=True)
    buy = Launch(on_demand, "slack_short", "the slack is worth less than on demand costs")
    if not any(known.place.spot for known in worth):
        return buy  # none that is worth its price: nothing to wait for
    outlook = outlook_of(seen, market.chain, worth, settings)
    if must_be_safe(seen, settings) or slack_h <= outlook.at(outlook.buy, seen.work_left_h, market):
        return buy
    visible = any(known.up_h is not None for known in spot)
    early = visible and slack_h > outlook.at(outlook.wait, seen.work_left_h, market)
    taken = () if early else _taken(seen, _by_price(seen, spot, market, settings), market, worth, settings)
    if taken:
        return Launch(taken, "slack_enough", "there is enough slack to try spot, and to absorb a preemption")
    return wait if _can_wait(seen, settings) else buy


def _can_wait(seen: Observation, settings: Settings) -> bool:
    kept_h = (1 + settings.margin) * seen.restart_h + unmeasured_h(seen)
    return slack_of(seen) - settings.check_h >= kept_h - ROUNDING_H


def _taken(
    seen: Observation, order: Sequence[Place], market: SpotMarket, worth: Sequence[Known], settings: Settings
) -> tuple[Place, ...]:
    """Of spot in this order, what is worth more than waiting for cheaper spot."""
    lowest = cheapest(worth, spot=True)
    assert lowest is not None
    return tuple(
        place
        for place in order
        if place.price_usd_per_hour <= AS_CHEAP * lowest.price_usd_per_hour
        or slack_of(seen) <= _buys_at(seen, place, market.chain, worth, settings)
    )


def _buys_at(seen: Observation, place: Place, chain: Chain, worth: Sequence[Known], settings: Settings) -> float:
    """The slack at which a place's price is paid rather than waiting for those below it, which have refused."""
    below = [known for known in worth if known.place.spot and known.place.price_usd_per_hour < place.price_usd_per_hour]
    out_h = min((known.out_h or 0.0 for known in below), default=0.0)
    sooner = counted(len(below)) ** SHORTER_OUT  # of several zones one is back sooner
    chain = replace(chain, down_ends=tuple(rate * sooner for rate in chain.down_ends))
    table = outlook_against(seen, place, chain, worth, settings)
    return table.at(table.buy, seen.work_left_h, SpotMarket(chain, up=False, age_h=out_h))


def slack_of(seen: Observation) -> float:
    """Hours to the deadline, less the work left."""
    return (seen.deadline_h or 0.0) - seen.work_left_h


def outlook_of(seen: Observation, chain: Chain, places: Sequence[Known], settings: Settings) -> Outlook:
    """The table of the cheapest spot against the cheapest machine on demand."""
    on_demand = cheapest(places, spot=False)
    return outlook_against(seen, on_demand, chain, places, settings)


def outlook_against(
    seen: Observation, certain: Place | None, chain: Chain, places: Sequence[Known], settings: Settings
) -> Outlook:
    """The table of the cheapest spot against a place that is taken for certain."""
    spot, price, restores = cheapest(places, spot=True), 1.0, NO_RESTORES
    if spot and certain:
        price = spot.price_usd_per_hour / certain.price_usd_per_hour
        if certain.spot:  # one table for all places of about that price
            price = math.exp(round(math.log(price) / PRICE_STEP) * PRICE_STEP)
        restores = Restores(*(place.restore_usd / certain.price_usd_per_hour for place in (spot, certain)))
    return outlook_for(seen.work_left_h, slack_of(seen), seen.restart_h, price, chain, settings, restores)


def outlook_for(
    work_h: float,
    slack_h: float,
    restart_h: float,
    spot_price: float,
    chain: Chain,
    settings: Settings,
    restores: Restores = NO_RESTORES,
) -> Outlook:
    """The table for the work and the slack that are left, rounded up: it is shared, and covers all that comes later.

    `spot_price` and `restores` are ratios to the on-demand price.
    """
    work_h = _round_up(work_h)
    deadline_h = work_h + _round_up(max(0.0, slack_h))
    step_h = step_of(deadline_h, settings.check_h)
    return solve(Problem(work_h, deadline_h, restart_h, spot_price, step_h, chain, FINER, restores))


def _round_up(hours: float) -> float:
    """To the next of 0.75, 6, 48, 384 ... hours."""
    return float(0.75 * 8 ** math.ceil(math.log(max(hours / 0.75, 1.0), 8) - ROUNDING_H))


def _by_price(seen: Observation, spot: Sequence[Known], market: SpotMarket, settings: Settings) -> tuple[Place, ...]:
    """By the price of an hour of work, preemptions included; of equals the one that has held for longest."""

    def rank(known: Known) -> tuple[float, float, str]:
        return visible_spot_usd(seen, known, market, settings), -(known.up_h or 0.0), known.place.where

    return tuple(known.place for known in sorted(spot, key=rank))


def _still_refused(seen: Observation, known: Known) -> bool:
    """It had nothing, and it is too early to ask again."""
    return known.refused_h_ago is not None and known.refused_h_ago < back_off_h(seen.refusals_in_a_row)


def _until_asked_again_h(seen: Observation, places: Sequence[Known], settings: Settings) -> float:
    """Until the first spot place may be asked again; one look where none was refused."""
    ago = [known.refused_h_ago for known in places if known.place.spot and known.refused_h_ago is not None]
    left_h = back_off_h(seen.refusals_in_a_row) - max(ago, default=0.0)
    return max(settings.check_h, left_h) if ago else settings.check_h
