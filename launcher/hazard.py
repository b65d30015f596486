"""How often a spot machine is taken away, and for how long there is none: by place, as the policy's chain of spells.

What is shipped is a prior (policy/market.py says from which traces). It is *assumed* for every place until something
better is known: `--hazard`, or what the user's own runs have met (experience.py).
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from launcher.policy.market import AGE_BINS_H, BINS, PRIOR_DOWN, PRIOR_ELSEWHERE, Chain, Rates, churned, mean_spell_h

PROVENANCE = "spot traces of AWS V100 and K80 zones, 2022-10 to 2023-08"


class Hazard(BaseModel):
    """Of one spot market."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    chain: Chain
    source: str
    measured: bool = False
    """From the user's own runs, not only assumed."""


def assumed(places: int, mean_h: float | None = None) -> Hazard:
    """The shipped table for a market of so many places.

    Args:
        places: zones. With several of them another one may have a machine when one is taken away.
        mean_h: mean hours between preemptions, the same at every age: what `--hazard` says. None = the shipped table.
    """
    if mean_h is not None:
        elsewhere = PRIOR_ELSEWHERE if places > 1 else 0.0
        rates = (1 / mean_h,) * BINS
        return Hazard(
            chain=Chain(rates, rates, PRIOR_DOWN, elsewhere),
            source=f"--hazard: a spot machine is taken away every {mean_h:g} h on average",
        )
    chain = churned(0.0, places)
    mean, median = mean_spell_h(chain.machine_ends), median_spell_h(chain.machine_ends)
    return Hazard(
        chain=chain,
        source=(
            f"spot in {'several zones' if places > 1 else 'one zone'}, assumed from {PROVENANCE}: a machine is taken "
            f"away after {mean:.1f} h on average (half of them within {median:.1f} h), and a stock-out ends after "
            f"{mean_spell_h(chain.down_ends):.1f} h"
        ),
    )


def median_spell_h(rates: Rates) -> float:
    """Half of the spells are over by then."""
    left = math.log(2)
    for rate, (begin, end) in zip(rates, AGE_BINS_H, strict=True):
        if rate * (end - begin) >= left:
            return begin + left / rate
        left -= rate * (end - begin)
    raise AssertionError("the last bin has no end")
