"""How often a spot machine is taken away, and for how long there is none: by place, as the policy's chain of spells.

What is shipped is a prior (policy/market.py says from which traces). It is *assumed* for every place until something
better is known: `--hazard`, or what the user's own runs have met (experience.py).
"""

from __future__ import annotations

import math
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from launcher.policy.market import (
    AGE_BINS_H,
    BINS,
    MOST_ZONES,
    PRIOR_DOWN,
    PRIOR_ELSEWHERE,
    Chain,
    Met,
    Rates,
    another_zone,
    churned,
    down_ends,
    mean_spell_h,
    world,
)

PROVENANCE = "spot traces of AWS V100 and K80 zones, 2022-10 to 2023-08"


ON_DEMAND_H = 720.0
"""Mean life of an on-demand machine. Assumed: one that nobody takes away still breaks now and then."""


class Hazard(BaseModel):
    """Of one spot market."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    world: Chain
    """How it is, as far as it is known: what runs are simulated in."""
    chain: Chain
    """What the policy computes with, as replays tuned it."""
    source: str
    measured: bool = False
    """From the user's own runs, not only assumed."""


class Learned(Protocol):
    """What the user's runs have met of a market."""

    def hazard(self, zones: int) -> Hazard:
        """Of that market with so many zones."""

    @property
    def met(self) -> Met:
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
            world=found, chain=churned(0.0, zones), source=f"assumed from {PROVENANCE}: {in_words(found, zones)}"
        )
    rates = (1 / mean_h,) * BINS
    return Hazard(
        world=Chain(rates, rates, down_ends(1.0, zones), another_zone(zones)),
        chain=Chain(rates, rates, PRIOR_DOWN, PRIOR_ELSEWHERE if zones > 1 else 0.0),
        source=f"--hazard: a spot machine is taken away every {mean_h:g} h on average",
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
