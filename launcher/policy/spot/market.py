"""Model of a spot market: a chain of up and down spells whose hazard falls with their age, learned from observations.

A fresh spell of availability ends much sooner than one that has lasted for hours, and so does a fresh stock-out (spot
traces of "Can't Be Late", Wu et al., NSDI'24). So a hazard is a table by the age of the spell, one for the end of an up
spell and one for the end of a down spell. The shape of the shipped tables is kept; only one number is learned for each
place, its churn: how many spells have ended there for each one that the tables expected. Separate rates by age bin, or
for up and down, need more events than a run ever sees, and did worse in replays (docs/concepts/where-to-run.md).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

AGE_EDGES_H = (0.2, 0.6, 1.5, 4.0, 10.0)
"""Borders of the age bins, hours; the last bin is open."""
BINS = len(AGE_EDGES_H) + 1
AGE_BINS_H = tuple(pairwise((0.0, *AGE_EDGES_H, math.inf)))
"""Begin and end of each bin, hours."""

UNSEEN_AGE_H = 1.0
"""Assumed age of a spell whose begin was not observed: at a random time one meets the long spells, not a fresh one."""

Rates = tuple[float, ...]
"""Ends per hour, one rate for each age bin."""

PRIOR_UP: Rates = (1.53, 1.14, 0.67, 0.26, 0.15, 0.058)
PRIOR_DOWN: Rates = (1.61, 1.09, 0.57, 0.34, 0.28, 0.074)
"""Pooled over the spot traces of 2022-10-26, 2023-02-15 (AWS V100 and K80, 1 node) and 2023-08-03 (4 nodes), first half
of the recorded time; ends / hours at risk. For A100s in another cloud they are assumed, not measured."""
PRIOR_EVENTS = 3.0
"""Weight of the tables, in events, against the observed ones."""
PRIOR_ELSEWHERE = 0.2
"""Chance that another place is up when a machine is preempted."""
SEVERAL = 1.2
"""Hazard of a machine relative to the tables if there are several places. Tuned for the policy's own table, in replays
with two zones; for a realistic market see `world`."""

MOST_ZONES = 5
"""Largest number of zones that counts: no more were recorded together, so what a sixth one adds is not known."""
ANOTHER_ZONE = 0.23
"""Chance that each further zone has a machine when one is preempted. From the five zones of 2023-02-15 (AWS V100), all
subsets and orders, for a run that stays until it loses its zone and then takes the first that is up: 0.24, 0.41, 0.53
and 0.65 with 2 to 5 zones; this gives 0.23, 0.41, 0.54 and 0.65. More zones don't shorten a machine's life there."""
SHORTER_OUT = 0.35
"""Stock-outs of a market end faster by this power of its number of zones: 1.83, 1.20, 0.94, 0.76 and 0.63 h on average
with 1 to 5 of the same zones; this gives 1.86, 1.17, 0.91, 0.76 and 0.66."""

CHURN_WEIGHT, CHURN_BIAS, SCARCITY = 1.1, 1.05, 1.0
USUAL_UP = 0.55
"""Share of the time that a place in the traces is up."""
FORGET_H, SCARCITY_H = 72.0, 36.0
"""Time constants for forgetting the churn, and the share of time with a machine."""
MOST_CHURN = 1.0
"""Bound on the logarithm of a churn, either way."""
CHURN_STEP = math.log(1.2)
"""Step between chains, so that tables computed from them can be shared."""


def age_bin(age_h: float) -> int:
    """The bin of a spell of that age."""
    return bisect_right(AGE_EDGES_H, age_h)


@dataclass(frozen=True)
class Chain:
    """The rates of a market of one or more places."""

    machine_ends: Rates = PRIOR_UP
    """Preemptions of a machine, by the age of its place's spell."""
    up_ends: Rates = PRIOR_UP
    """Ends of the whole market's up spells: no place has a machine any more."""
    down_ends: Rates = PRIOR_DOWN
    elsewhere: float = 0.0
    """Chance that another place is up when a machine is preempted."""

    def ends_at(self, age_h: float) -> float:
        """Preemptions per hour in a spell of that age."""
        return self.machine_ends[age_bin(age_h)]


def mean_spell_h(rates: Rates) -> float:
    """Mean length of a spell: the integral of its survival, with a constant hazard within each age bin."""
    mean, survival = 0.0, 1.0
    for rate, (begin, end) in zip(rates, AGE_BINS_H, strict=True):
        width = end - begin
        ends = 1 - math.exp(-rate * width)
        mean += survival * ends / rate
        survival *= 1 - ends
    return mean


def survival(rates: Rates, age_h: float) -> float:
    """Share of spells that last longer than `age_h`."""
    widths = (max(0.0, min(age_h, end) - begin) for begin, end in AGE_BINS_H)
    return math.exp(-math.fsum(rate * width for rate, width in zip(rates, widths, strict=True)))


def churned(log_churn: float, places: int) -> Chain:
    """The shipped tables scaled by a churn (its logarithm), in steps of 20 %."""
    return _chain_at(round(min(max(log_churn, -MOST_CHURN), MOST_CHURN) / CHURN_STEP), places > 1)


@lru_cache
def _chain_at(level: int, several: bool) -> Chain:
    factor = math.exp(level * CHURN_STEP)
    machine = factor * (SEVERAL if several else 1.0)
    return Chain(
        machine_ends=tuple(rate * machine for rate in PRIOR_UP),
        up_ends=tuple(rate * factor for rate in PRIOR_UP),
        down_ends=tuple(rate * factor for rate in PRIOR_DOWN),
        elsewhere=PRIOR_ELSEWHERE if several else 0.0,
    )


def counted(zones: int) -> int:
    """The number of zones of a market, limited to what is known to help."""
    return min(max(zones, 1), MOST_ZONES)


def world(factor: float, zones: int) -> Chain:
    """The assumed behaviour of a market of `zones` zones: the shipped tables scaled by a factor.

    With more zones, another one is more likely to be up after a preemption, and stock-outs end sooner.
    """
    machine_ends = tuple(rate * factor for rate in PRIOR_UP)
    return Chain(machine_ends, machine_ends, down_ends(factor, zones), another_zone(zones))


def down_ends(factor: float, zones: int) -> Rates:
    """Ends per hour of the stock-outs of a market of `zones` zones."""
    return tuple(rate * factor * counted(zones) ** SHORTER_OUT for rate in PRIOR_DOWN)


def another_zone(zones: int) -> float:
    """Chance that a market of `zones` zones has another machine when one is preempted."""
    return float(1 - (1 - ANOTHER_ZONE) ** (counted(zones) - 1))


class SpellEnds(NamedTuple):
    """Spells that ended, up and down together, and how many of them the tables expected."""

    ends: float = 0.0
    expected: float = 0.0

    def plus(self, other: SpellEnds) -> SpellEnds:
        """The sum of both."""
        return SpellEnds(self.ends + other.ends, self.expected + other.expected)


def log_churn(seen: float, expected: float) -> float:
    """The logarithm of the factor on all hazards, from the ends seen and those that the tables expected."""
    return tuned((PRIOR_EVENTS + seen) / (PRIOR_EVENTS + expected))


def tuned(churn: float) -> float:
    """The logarithm of a churn as the policy's chain takes it."""
    return CHURN_WEIGHT * math.log(churn) + math.log(CHURN_BIAS)


@dataclass(frozen=True)
class SpotMarket:
    """What is currently known about spot."""

    chain: Chain
    up: bool
    age_h: float
    """How long it has been up, or down."""


@dataclass
class Spells:
    """Counts for one chain of up and down spells. Pass it every observation, in order of time."""

    up: bool | None = None
    age_h: float = 0.0
    ends: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])
    at_risk_h: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])

    def look(self, up: bool, hours: float) -> None:
        """Record that it is `up` (or not) now, `hours` after the last observation."""
        if self.up is not None:
            kind, place = int(self.up), age_bin(self.age_h)
            self.at_risk_h[kind][place] += hours
            self.ends[kind][place] += up != self.up
        self.age_h = hours if up != self.up else self.age_h + hours
        self.up = up

    def counts(self, up: bool) -> tuple[list[float], list[float]]:
        """By age bin: ends of up (or down) spells, and the hours in which they could have ended."""
        return self.ends[int(up)], self.at_risk_h[int(up)]


def pooled(chains: Sequence[Spells], up: bool) -> tuple[list[float], list[float]]:
    """The counts of several chains together."""
    ends, at_risk_h = zip(*(spells.counts(up) for spells in chains), strict=True)
    return [sum(bins) for bins in zip(*ends, strict=True)], [sum(bins) for bins in zip(*at_risk_h, strict=True)]


@dataclass
class Prober:
    """Learns the churn of a market of several places whose availability can be observed (traces, simulations)."""

    ages_h: list[float]
    up: list[bool] = field(default_factory=list)
    anywhere: bool | None = None
    age_h: float = UNSEEN_AGE_H
    """Age of the whole market's spell."""
    seen: float = 0.0
    expected: float = 0.0
    spell_ends: list[SpellEnds] = field(default_factory=list)
    """Spell ends of each place's machines; like the market's counts, they decay."""
    share_up: float = USUAL_UP

    @classmethod
    def of(cls, count: int) -> Prober:
        """A prober for `count` places."""
        return cls([UNSEEN_AGE_H] * count)

    def look(self, up: Sequence[bool], hours: float) -> None:
        """Record which places have a machine now, `hours` after the last observation."""
        anywhere = any(up)
        if self.anywhere is not None:
            self._count(anywhere, hours)
            self._count_places(up, hours)
            places = zip(up, self.up, self.ages_h, strict=True)
            self.ages_h = [age + hours if now == before else hours for now, before, age in places]
        self.share_up += (1 - math.exp(-hours / SCARCITY_H)) * (anywhere - self.share_up)
        self.up, self.anywhere = list(up), anywhere

    def _count(self, anywhere: bool, hours: float) -> None:
        kept = math.exp(-hours / FORGET_H)
        rate = (PRIOR_UP if self.anywhere else PRIOR_DOWN)[age_bin(self.age_h)]
        self.seen = self.seen * kept + (anywhere != self.anywhere)
        self.expected = self.expected * kept + rate * hours
        self.age_h = self.age_h + hours if anywhere == self.anywhere else hours

    def _count_places(self, up: Sequence[bool], hours: float) -> None:
        kept = math.exp(-hours / FORGET_H)
        places = zip(self.spell_ends or [SpellEnds()] * len(up), up, self.up, self.ages_h, strict=True)
        self.spell_ends = [
            SpellEnds(
                past.ends * kept + (before and not now),
                past.expected * kept + before * PRIOR_UP[age_bin(age_h)] * hours,
            )
            for past, now, before, age_h in places
        ]

    def market(self) -> SpotMarket:
        """The market after the last observation; an up market has the age of its oldest place.

        A market that was rarely up lately has a higher churn than its events alone suggest.
        """
        alive = [age for age, up in zip(self.ages_h, self.up, strict=True) if up]
        log = log_churn(self.seen, self.expected) - SCARCITY * (self.share_up - USUAL_UP)
        chain = churned(log, len(self.ages_h))
        return SpotMarket(chain, bool(alive), max(alive) if alive else min(self.ages_h))
