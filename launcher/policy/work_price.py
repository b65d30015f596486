"""What an hour of committed work costs at a place, preemptions included, and the order that follows. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from launcher.policy.back_off import LONGEST_WAIT_H
from launcher.policy.model import USUAL_HAZARD_PER_H, Known, Observation, Place
from launcher.policy.settings import Settings
from launcher.policy.spot.market import AGE_BINS_H, PRIOR_UP, SpotMarket

MET_H = 2.0
"""Hours of machines that the model's useful share counts for, against those that this run has paid at the place."""
MOST_STARTS = 50.0
"""Exponent at which a place is as good as never useful: the result stays finite."""


def work_hour_usd(price_usd_per_hour: float, hazard_per_h: float, restart_h: float, restore_usd: float = 0.0) -> float:
    """Dollars of an hour of committed work on a machine that is taken away at a constant hazard.

    Each machine lives 1 / hazard hours on average, and works in those after its start: e^(-hazard x restart) / hazard.
    So an hour of work takes e^(hazard x restart) hours of machines, and so many starts times the hazard, each with a
    restore. (For a small hazard this is price x (1 + hazard x restart).)
    """
    machine_hours = math.exp(min(hazard_per_h * restart_h, MOST_STARTS))
    return machine_hours * (price_usd_per_hour + hazard_per_h * restore_usd)


def spot_usd(seen: Observation, known: Known, settings: Settings) -> float:
    """Dollars of the next hour of committed work on spot there.

    The price is the model's or what this run has met, whichever is dearer. Where a machine was just taken away, it
    includes the restarts of a spell that has just begun.
    """
    place, hazard_per_h = known.place, hazard_of(seen, known)
    modelled = work_hour_usd(place.price_usd_per_hour, hazard_per_h, seen.restart_h, place.restore_usd)
    usd = max(modelled, place.price_usd_per_hour / _met_share(known, hazard_per_h * seen.restart_h))
    return usd + _fresh_spell_usd(seen, known, settings)


def _met_share(known: Known, restarts: float) -> float:
    """Of a machine's hours, those of committed work: as this run has met it, shrunk to the model's share."""
    expected = math.exp(-min(restarts, MOST_STARTS))
    return (known.paid.worked_h + expected * MET_H) / (known.paid.hours + MET_H)


def _fresh_spell_usd(seen: Observation, known: Known, settings: Settings) -> float:
    """Dollars of the extra restarts at a place that took a machine away a moment ago.

    If the place has a machine, its spell is new, and new spells end soon (market.py). The restarts are paid within
    `cool_h`, which is an hour.
    """
    ago_h = known.preempted_h_ago
    if ago_h is None or ago_h >= settings.cool_h:
        return 0.0
    at_risk = [max(0.0, min(high, settings.cool_h) - max(low, ago_h)) for low, high in AGE_BINS_H]
    restarts = math.fsum((rate - USUAL_HAZARD_PER_H) * hours for rate, hours in zip(PRIOR_UP, at_risk, strict=True))
    return restarts * restart_usd(seen, known.place)


def hazard_of(seen: Observation, known: Known) -> float:
    """Preemptions per hour there, on average."""
    return seen.hazard_per_h if known.hazard_per_h is None else known.hazard_per_h


def hour_usd(seen: Observation, known: Known, settings: Settings) -> float:
    """Dollars of an hour of committed work at a place of either market."""
    return spot_usd(seen, known, settings) if known.place.spot else known.place.price_usd_per_hour


def restart_usd(seen: Observation, place: Place) -> float:
    """Of one start there, without progress."""
    return seen.restart_h * place.price_usd_per_hour + place.restore_usd


def worth_their_price(seen: Observation, payable: Sequence[Known], settings: Settings) -> list[Known]:
    """Without the spot places that are no cheaper than a machine on demand that can be had."""
    on_demand = [known.place for known in payable if not known.place.spot and not refused_of_late(known)]
    on_demand_usd = min((place.price_usd_per_hour for place in on_demand), default=math.inf)
    return [known for known in payable if not known.place.spot or spot_usd(seen, known, settings) < on_demand_usd]


def refused_of_late(known: Known) -> bool:
    """Too recently to go first."""
    return known.refused_h_ago is not None and known.refused_h_ago < LONGEST_WAIT_H


def in_order(
    seen: Observation, places: Iterable[Known], settings: Settings, *, on_demand_first: bool
) -> tuple[Place, ...]:
    """One market after the other; in each those that refused a moment ago last, else by the price of an hour."""

    def rank(known: Known) -> tuple[bool, bool, float, str]:
        usd = hour_usd(seen, known, settings)
        return known.place.spot == on_demand_first, refused_of_late(known), usd, known.place.where

    return tuple(known.place for known in sorted(places, key=rank))


def visible_spot_usd(seen: Observation, known: Known, market: SpotMarket, settings: Settings) -> float:
    """As `spot_usd`; where the place's spell can be seen, by the hazard of its age."""
    if known.up_h is None:
        return spot_usd(seen, known, settings)
    hazard_per_h = market.chain.ends_at(known.up_h) * known.churn
    return work_hour_usd(known.place.price_usd_per_hour, hazard_per_h, seen.restart_h, known.place.restore_usd)


def cheapest(places: Iterable[Known], *, spot: bool) -> Place | None:
    """Of one market, by its list price."""
    found = (known.place for known in places if known.place.spot == spot)
    return min(found, key=lambda place: (place.price_usd_per_hour, place.restore_usd), default=None)
