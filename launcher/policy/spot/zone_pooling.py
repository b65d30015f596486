"""How the zones of one market differ: each zone's own record, trusted as far as it goes. Pure.

A churn is a factor on all hazards: the spells that ended for each one that the tables expected (market.py). Zones of a
market are alike but not the same, and a run sees few spells in each. So a zone's churn shrinks to its market's, and
that one to the shipped tables (1), by the credibility of what was met: Bühlmann and Straub, "Glaubwürdigkeit für
Schadensätze", 1970, with Poisson counts. For n ends where e were expected:

1. A zone's churn is drawn from Gamma(k m, k): mean m, the market's, and variance m / k. Its n are Poisson(churn e), so
   its posterior is Gamma(k m + n, k + e), with the mean (k m + n) / (k + e).
2. What a zone says of its market: n / e has the variance m / e from chance and m / k from the zone's own ways, together
   m / w with w = e k / (e + k). So it counts for w expected ends: nearly e where that is little, never more than k,
   because a zone that is known for certain is still one zone.
3. The market's churn is Gamma(p, p) before (mean 1), so its posterior mean is (p + sum w n / e) / (p + sum w).
   Stock-outs are the market's own, and count in full.

Everything is a sum over zones, so the order in which spells came does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.policy.spot.market import MOST_CHURN, PRIOR_EVENTS, Met

ZONE_EVENTS = 7.0
"""k: expected ends of a zone's own that weigh as much as its market's mean. The estimator of Bühlmann and Straub
(variance between zones, less that of the counts) gives 7.6 for the five zones of 2023-02-15, whose churn was 0.60 to
1.35, and 5.0 for the two kinds of 8-GPU node of 2022-10-26."""
NOTHING = Met()


@dataclass(frozen=True)
class MarketMet:
    """What was met of a market."""

    whole: Met = NOTHING
    """Of all zones together (its stock-outs), or of zones that nobody noted."""
    zones: Mapping[str, Met] = field(default_factory=dict)
    """Of the machines of each zone; a region where its cloud has no zones."""

    def plus(self, other: MarketMet) -> MarketMet:
        """Both together."""
        names = [*self.zones, *(name for name in other.zones if name not in self.zones)]
        zones = {name: self.zones.get(name, NOTHING).plus(other.zones.get(name, NOTHING)) for name in names}
        return MarketMet(self.whole.plus(other.whole), zones)

    @property
    def churn(self) -> float:
        """Of the market, and of a zone of it that nobody has tried."""
        shares = [(met, ZONE_EVENTS / (ZONE_EVENTS + met.expected)) for met in self.zones.values()]
        ends = self.whole.ends + math.fsum(share * met.ends for met, share in shares)
        expected = self.whole.expected + math.fsum(share * met.expected for met, share in shares)
        return (PRIOR_EVENTS + ends) / (PRIOR_EVENTS + expected)

    def churn_in(self, zone: str) -> float:
        """Of a zone."""
        own = self.zones.get(zone, NOTHING)
        return (ZONE_EVENTS * self.churn + own.ends) / (ZONE_EVENTS + own.expected)


def within_bounds(churn: float) -> float:
    """As far from the tables as one is believed to be."""
    most = math.exp(MOST_CHURN)
    return min(max(churn, 1 / most), most)


def mean_churn(churns: Iterable[float]) -> float:
    """Of the zones that would be asked, each within bounds; 1 = the tables, where there are none."""
    found = [within_bounds(churn) for churn in churns]
    return math.fsum(found) / len(found) if found else 1.0


def against_market(zones: Sequence[Met]) -> tuple[float, ...]:
    """Each zone's churn against their market's."""
    market = MarketMet(zones={str(number): met for number, met in enumerate(zones)})
    return tuple(market.churn_in(str(number)) / market.churn for number in range(len(zones)))
