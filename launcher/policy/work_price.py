"""The cost of an hour of committed work at a place, including preemptions, and the resulting order. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from launcher.policy.back_off import LONGEST_WAIT_H
from launcher.policy.model import USUAL_HAZARD_PER_H, Observation, Place, PlaceState
from launcher.policy.settings import Settings
from launcher.policy.spot.market import AGE_BINS_H, PRIOR_UP, SpotMarket

MODEL_WEIGHT_H = 2.0
"""Weight of the model's useful share, in machine hours, against those that this run has paid for at the place."""
MOST_STARTS = 50.0
"""Bound on the exponent, so that the result stays finite for a place that is practically never useful."""


def work_hour_usd(price_usd_per_hour: float, hazard_per_h: float, restart_h: float, restore_usd: float = 0.0) -> float:
    """Dollars per hour of committed work on a machine that is preempted at a constant hazard.

    Each machine lives 1 / hazard hours on average, and works e^(-hazard x restart) / hazard hours after its start. So
    an hour of work takes e^(hazard x restart) machine hours, and that number times the hazard of starts, each with a
    restore. For a small hazard this is price x (1 + hazard x restart).
    """
    machine_hours = math.exp(min(hazard_per_h * restart_h, MOST_STARTS))
    return machine_hours * (price_usd_per_hour + hazard_per_h * restore_usd)


def spot_usd(seen: Observation, state: PlaceState, settings: Settings) -> float:
    """Dollars for the next hour of committed work on spot there.

    The price is the model's or the one this run has observed, whichever is higher. If a machine was just preempted
    there, it includes the restarts of a spell that has just begun.
    """
    place, hazard_per_h = state.place, hazard_of(seen, state)
    modelled = work_hour_usd(place.price_usd_per_hour, hazard_per_h, seen.restart_h, place.restore_usd)
    usd = max(modelled, place.price_usd_per_hour / _useful_share(state, hazard_per_h * seen.restart_h))
    return usd + _fresh_spell_usd(seen, state, settings)


def _useful_share(state: PlaceState, restarts: float) -> float:
    """Share of machine hours that became committed work, as this run saw it, shrunk towards the model's."""
    expected = math.exp(-min(restarts, MOST_STARTS))
    return (state.paid.worked_h + expected * MODEL_WEIGHT_H) / (state.paid.hours + MODEL_WEIGHT_H)


def _fresh_spell_usd(seen: Observation, state: PlaceState, settings: Settings) -> float:
    """Dollars for the extra restarts at a place that has just preempted a machine.

    If the place has a machine, its spell is new, and new spells end soon (market.py). Only the restarts within `cool_h`
    (an hour) count.
    """
    ago_h = state.preempted_h_ago
    if ago_h is None or ago_h >= settings.cool_h:
        return 0.0
    at_risk = [max(0.0, min(high, settings.cool_h) - max(low, ago_h)) for low, high in AGE_BINS_H]
    restarts = math.fsum((rate - USUAL_HAZARD_PER_H) * hours for rate, hours in zip(PRIOR_UP, at_risk, strict=True))
    return restarts * restart_usd(seen, state.place)


def hazard_of(seen: Observation, state: PlaceState) -> float:
    """Preemptions per hour there, on average."""
    return seen.hazard_per_h if state.hazard_per_h is None else state.hazard_per_h


def hour_usd(seen: Observation, state: PlaceState, settings: Settings) -> float:
    """Dollars per hour of committed work at a place, spot or on demand."""
    return spot_usd(seen, state, settings) if state.place.spot else state.place.price_usd_per_hour


def restart_usd(seen: Observation, place: Place) -> float:
    """Cost of one start there, without progress."""
    return seen.restart_h * place.price_usd_per_hour + place.restore_usd


def worth_their_price(seen: Observation, payable: Sequence[PlaceState], settings: Settings) -> list[PlaceState]:
    """Drop the spot places that are not cheaper than an on-demand machine that is available."""
    on_demand = [state.place for state in payable if not state.place.spot and not refused_of_late(state)]
    on_demand_usd = min((place.price_usd_per_hour for place in on_demand), default=math.inf)
    return [state for state in payable if not state.place.spot or spot_usd(seen, state, settings) < on_demand_usd]


def refused_of_late(state: PlaceState) -> bool:
    """Did it refuse too recently to be tried first?"""
    return state.refused_h_ago is not None and state.refused_h_ago < LONGEST_WAIT_H


def in_order(
    seen: Observation, places: Iterable[PlaceState], settings: Settings, *, on_demand_first: bool
) -> tuple[Place, ...]:
    """One market after the other; within each by the price of an hour, with those that just refused last."""

    def rank(state: PlaceState) -> tuple[bool, bool, float, str]:
        usd = hour_usd(seen, state, settings)
        return state.place.spot == on_demand_first, refused_of_late(state), usd, state.place.where

    return tuple(state.place for state in sorted(places, key=rank))


def visible_spot_usd(seen: Observation, state: PlaceState, market: SpotMarket, settings: Settings) -> float:
    """Like `spot_usd`; if the place's spell can be observed, by the hazard at its age."""
    if state.up_h is None:
        return spot_usd(seen, state, settings)
    hazard_per_h = market.chain.ends_at(state.up_h) * state.churn
    return work_hour_usd(state.place.price_usd_per_hour, hazard_per_h, seen.restart_h, state.place.restore_usd)


def cheapest(places: Iterable[PlaceState], *, spot: bool) -> Place | None:
    """The cheapest place of one market, by list price."""
    candidates = (state.place for state in places if state.place.spot == spot)
    return min(candidates, key=lambda place: (place.price_usd_per_hour, place.restore_usd), default=None)
