"""Partial pooling of the zones of one market: each zone's own record counts as far as it is credible. Pure.

A churn is a factor on all hazards: the spells that ended for each one that the tables expected (market.py). The zones
of a market are similar but not the same, and a run sees few spells in each. So a zone's churn shrinks towards its
market's, and the market's towards the shipped tables (1), by the credibility of the observations: Bühlmann and Straub,
"Glaubwürdigkeit für Schadensätze", 1970, with Poisson counts. For n ends with e expected:

1. A zone's churn is drawn from Gamma(k m, k): mean m, the market's, and variance m / k. Its n are Poisson(churn e), so
   its posterior is Gamma(k m + n, k + e), with the mean (k m + n) / (k + e).
2. As an estimate of the market, n / e has the variance m / e from chance and m / k from differences between zones,
   together m / w with w = e k / (e + k). So it counts for w expected ends: nearly e if that is small, never more than
   k, because a zone that is known for certain is still one zone.
3. The market's churn has the prior Gamma(p, p) (mean 1), so its posterior mean is (p + sum w n / e) / (p + sum w).
   Stock-outs belong to the market, and count in full.

Everything is a sum over zones, so the order of the spells does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.policy.spot.market import MOST_CHURN, PRIOR_EVENTS, SpellEnds

ZONE_EVENTS = 7.0
"""k: expected ends of a zone that weigh as much as its market's mean. The estimator of Bühlmann and Straub
(variance between zones, less that of the counts) gives 7.6 for the five zones of 2023-02-15, whose churn was 0.60 to
1.35, and 5.0 for the two kinds of 8-GPU node of 2022-10-26."""
NOTHING = SpellEnds()


@dataclass(frozen=True)
class MarketEnds:
    """Spell ends of a market and of its zones."""

    whole: SpellEnds = NOTHING
    """Ends that belong to all zones together (stock-outs), or whose zone was not recorded."""
    zones: Mapping[str, SpellEnds] = field(default_factory=dict)
    """Ends of the machines of each zone, or region if its cloud has no zones."""

    def plus(self, other: MarketEnds) -> MarketEnds:
        """The sum of both."""
        names = [*self.zones, *(name for name in other.zones if name not in self.zones)]
        zones = {name: self.zones.get(name, NOTHING).plus(other.zones.get(name, NOTHING)) for name in names}
        return MarketEnds(self.whole.plus(other.whole), zones)

    @property
    def churn(self) -> float:
        """The churn of the market, and of a zone that has not been tried."""
        shares = [(spell_ends, ZONE_EVENTS / (ZONE_EVENTS + spell_ends.expected)) for spell_ends in self.zones.values()]
        ends = self.whole.ends + math.fsum(share * spell_ends.ends for spell_ends, share in shares)
        expected = self.whole.expected + math.fsum(share * spell_ends.expected for spell_ends, share in shares)
        return (PRIOR_EVENTS + ends) / (PRIOR_EVENTS + expected)

    def churn_in(self, zone: str) -> float:
        """The churn of a zone."""
        own = self.zones.get(zone, NOTHING)
        return (ZONE_EVENTS * self.churn + own.ends) / (ZONE_EVENTS + own.expected)


def within_bounds(churn: float) -> float:
    """Limit a churn to a plausible distance from the tables."""
    most = math.exp(MOST_CHURN)
    return min(max(churn, 1 / most), most)


def mean_churn(churns: Iterable[float]) -> float:
    """Mean churn of the zones, each within bounds; 1 (the tables) if there are none."""
    bounded = [within_bounds(churn) for churn in churns]
    return math.fsum(bounded) / len(bounded) if bounded else 1.0


def against_market(zones: Sequence[SpellEnds]) -> tuple[float, ...]:
    """Each zone's churn relative to the market's."""
    market = MarketEnds(zones={str(number): spell_ends for number, spell_ends in enumerate(zones)})
    return tuple(market.churn_in(str(number)) / market.churn for number in range(len(zones)))
