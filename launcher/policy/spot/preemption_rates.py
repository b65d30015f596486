"""How often a spot machine is taken away, and for how long there is none: by zone, as the policy's chain of spells.

What is shipped is a prior (policy/market.py says from which traces). It is *assumed* for every place until something
better is known: `--hazard`, or what the user's own runs have met (experience.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from launcher.policy.spot.market import (
    AGE_BINS_H,
    BINS,
    MOST_ZONES,
    PRIOR_DOWN,
    PRIOR_ELSEWHERE,
    Chain,
    Rates,
    another_zone,
    churned,
    down_ends,
    mean_spell_h,
    world,
)
from launcher.policy.spot.zone_pooling import MarketMet

PROVENANCE = "spot traces of AWS V100 and K80 zones, 2022-10 to 2023-08"


ON_DEMAND_H = 720.0
"""Mean life of an on-demand machine. Assumed: one that nobody takes away still breaks now and then."""


Basis = Literal["assumed", "--hazard", "market", "region", "own spells"]
"""What a zone's rate comes from: the shipped table, the user's word, spells elsewhere in its market or in its region,
its own spells."""


class ZoneLife(NamedTuple):
    """Of the spot machines of one zone."""

    mean_h: float
    basis: Basis
    own_spells: int = 0
    """Machines of the user's there, or in its region: what tells the zone from its market."""


class Hazard(BaseModel):
    """Of one spot market."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    world: Chain
    """How it is, as far as it is known: what runs are simulated in. Its machines are those of the zone asked first."""
    chain: Chain
    """What the policy computes with, as replays tuned it."""
    source: str
    life_h: float
    """Mean life of a machine in a zone that nobody has tried."""
    basis: Basis = "assumed"
    """Of that life."""
    zones: Mapping[str, ZoneLife] = {}
    """Those that were tried."""
    ends_elsewhere: Rates | None = None
    """Of machines in the zones after the first, where they differ."""

    def life_in(self, zone: str) -> ZoneLife:
        """Of a zone."""
        return self.zones.get(zone, ZoneLife(self.life_h, self.basis))


class Learned(Protocol):
    """What the user's runs have met of a market."""

    def hazard(self, zones: Sequence[str]) -> Hazard:
        """Of that market with these zones, in the order in which they are asked."""

    @property
    def met(self) -> MarketMet:
        """What the policy starts from."""


def assumed(zones: int, mean_h: float | None = None) -> Hazard:
    """The shipped table for a market of so many zones.

    Args:
        zones: with several of them another one may have a machine when one is taken away, and a stock-out is shorter.
        mean_h: mean hours between preemptions, the same at every age: what `--hazard` says. None = the shipped table.
    """
    if mean_h is None:
        found = world(1.0, zones)
        return Hazard(
            world=found,
            chain=churned(0.0, zones),
            source=f"assumed from {PROVENANCE}: {in_words(found, zones)}",
            life_h=mean_spell_h(found.machine_ends),
        )
    rates = (1 / mean_h,) * BINS
    return Hazard(
        world=Chain(rates, rates, down_ends(1.0, zones), another_zone(zones)),
        chain=Chain(rates, rates, PRIOR_DOWN, PRIOR_ELSEWHERE if zones > 1 else 0.0),
        source=f"--hazard: a spot machine is taken away every {mean_h:g} h on average",
        basis="--hazard",
        life_h=mean_h,
    )


def in_words(found: Chain, zones: int) -> str:
    """A market for people."""
    mean, median = mean_spell_h(found.machine_ends), median_spell_h(found.machine_ends)
    places = "one zone" if zones == 1 else f"{zones} zones" if zones < MOST_ZONES else f"{MOST_ZONES} zones or more"
    then = f", another zone has one then in {found.elsewhere:.0%} of the cases" if zones > 1 else ""
    return (
        f"spot in {places}: a machine is taken away after {mean:.1f} h "
        f"on average (half of them within {median:.1f} h){then}, and a stock-out ends after "
        f"{mean_spell_h(found.down_ends):.1f} h"
    )


def median_spell_h(rates: Rates) -> float:
    """Half of the spells are over by then."""
    left = math.log(2)
    for rate, (begin, end) in zip(rates, AGE_BINS_H, strict=True):
        if rate * (end - begin) >= left:
            return begin + left / rate
        left -= rate * (end - begin)
    raise AssertionError("the last bin has no end")
