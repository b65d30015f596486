"""Preemption rates and stock-out lengths of spot machines by zone, as the policy's chain of spells.

The shipped table is a prior (market.py lists its traces). It is *assumed* for every place until something better is
known: `--hazard`, or what the user's own runs have seen (statistics.py).
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
from launcher.policy.spot.zone_pooling import MarketEnds

PROVENANCE = "spot traces of AWS V100 and K80 zones, 2022-10 to 2023-08"


ON_DEMAND_H = 720.0
"""Mean life of an on-demand machine. Assumed: it is not preempted, but machines break now and then."""


Basis = Literal["assumed", "--hazard", "market", "region", "own spells"]
"""The source of a zone's rate: the shipped table, the user's option, spells elsewhere in its market or in its region,
or its own spells."""


class ZoneLife(NamedTuple):
    """Mean life of spot machines in one zone."""

    mean_h: float
    basis: Basis
    own_spells: int = 0
    """The user's own machines there, or in its region, which distinguish the zone from its market."""


class Hazard(BaseModel):
    """Preemption statistics for one spot market."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    world: Chain
    """The market as far as it is known, used to simulate runs. Its machines are those of the zone tried first."""
    chain: Chain
    """The chain that the policy computes with, as tuned in replays."""
    source: str
    life_h: float
    """Mean life of a machine in a zone that has not been tried."""
    basis: Basis = "assumed"
    """Basis of `life_h`."""
    zones: Mapping[str, ZoneLife] = {}
    """Zones that were tried."""
    ends_elsewhere: Rates | None = None
    """End rates of machines in the zones after the first, if they differ."""

    def life_in(self, zone: str) -> ZoneLife:
        """Mean life of a machine in a zone."""
        return self.zones.get(zone, ZoneLife(self.life_h, self.basis))


class Learned(Protocol):
    """What the user's runs have seen of a market."""

    def hazard(self, zones: Sequence[str]) -> Hazard:
        """The hazard of that market with these zones, in the order in which they are tried."""

    @property
    def spell_ends(self) -> MarketEnds:
        """The spell ends that the policy starts from."""


def assumed(zones: int, mean_h: float | None = None) -> Hazard:
    """The shipped table for a market of `zones` zones.

    Args:
        zones: with several zones, another one may have a machine after a preemption, and stock-outs are shorter.
        mean_h: mean hours between preemptions, the same at every age (`--hazard`). None = the shipped table.
    """
    if mean_h is None:
        chain = world(1.0, zones)
        return Hazard(
            world=chain,
            chain=churned(0.0, zones),
            source=f"assumed from {PROVENANCE}: {describe(chain, zones)}",
            life_h=mean_spell_h(chain.machine_ends),
        )
    rates = (1 / mean_h,) * BINS
    return Hazard(
        world=Chain(rates, rates, down_ends(1.0, zones), another_zone(zones)),
        chain=Chain(rates, rates, PRIOR_DOWN, PRIOR_ELSEWHERE if zones > 1 else 0.0),
        source=f"--hazard: a spot machine is preempted every {mean_h:g} h on average",
        basis="--hazard",
        life_h=mean_h,
    )


def describe(chain: Chain, zones: int) -> str:
    """Describe a market for people."""
    mean, median = mean_spell_h(chain.machine_ends), median_spell_h(chain.machine_ends)
    places = "one zone" if zones == 1 else f"{zones} zones" if zones < MOST_ZONES else f"{MOST_ZONES} zones or more"
    then = f", another zone then has one in {chain.elsewhere:.0%} of cases" if zones > 1 else ""
    return (
        f"spot in {places}: a machine is preempted after {mean:.1f} h "
        f"on average (half of them within {median:.1f} h){then}, and a stock-out ends after "
        f"{mean_spell_h(chain.down_ends):.1f} h"
    )


def median_spell_h(rates: Rates) -> float:
    """Median length of a spell."""
    left = math.log(2)
    for rate, (begin, end) in zip(rates, AGE_BINS_H, strict=True):
        if rate * (end - begin) >= left:
            return begin + left / rate
        left -= rate * (end - begin)
    raise AssertionError("the last bin has no end")
