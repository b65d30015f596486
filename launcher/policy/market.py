"""How a spot market comes and goes: a chain of spells whose hazard falls with their age, learned from what was seen.

A fresh spell of availability ends much sooner than one that has held for hours, and so does a fresh stock-out (spot
traces of "Can't Be Late", Wu et al., NSDI'24). So a hazard is a table by the age of the spell, one for the end of an up
spell and one for the end of a down spell. The shipped table is the prior; each place's own history updates it bin by
bin: a Gamma prior on a Poisson rate, whose weight is `PRIOR_EVENTS` events.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

AGE_EDGES_H = (0.2, 0.6, 1.5, 4.0, 10.0)
"""Borders of the age bins, hours; the last bin is open."""
BINS = len(AGE_EDGES_H) + 1

UNSEEN_AGE_H = 1.0
"""Age of a spell that nobody saw begin: who comes at a random time meets the long ones, so not a fresh one."""

Rates = tuple[float, ...]
"""Ends per hour, one for each age bin."""

PRIOR_UP: Rates = (1.53, 1.14, 0.67, 0.26, 0.15, 0.058)
PRIOR_DOWN: Rates = (1.61, 1.09, 0.57, 0.34, 0.28, 0.074)
"""Pooled over the spot traces of 2022-10-26, 2023-02-15 (AWS V100 and K80, 1 node) and 2023-08-03 (4 nodes), first half
of the recorded time; ends / hours at risk. For A100s in another cloud they are assumed, not measured."""
PRIOR_EVENTS = 3.0
PRIOR_ELSEWHERE = 0.2
"""Chance that another place is up when one is taken away, before anything was seen."""


def age_bin(age_h: float) -> int:
    """The bin of a spell of that age."""
    return bisect_right(AGE_EDGES_H, age_h)


@dataclass(frozen=True)
class Chain:
    """The rates of a market of one or more places."""

    machine_ends: Rates = PRIOR_UP
    """Preemptions of a machine, by the age of its place's spell."""
    up_ends: Rates = PRIOR_UP
    """Of the whole market: no place has a machine any more."""
    down_ends: Rates = PRIOR_DOWN
    elsewhere: float = 0.0
    """Chance that another place is up when a machine is taken away."""

    def ends_at(self, age_h: float) -> float:
        """Preemptions per hour in a spell of that age."""
        return self.machine_ends[age_bin(age_h)]

    def rounded(self) -> Chain:
        """To 5 %, so that tables computed from it can be shared."""

        def near(rates: Rates) -> Rates:
            return tuple(math.exp(round(math.log(max(rate, 1e-3)) / 0.05) * 0.05) for rate in rates)

        return Chain(near(self.machine_ends), near(self.up_ends), near(self.down_ends), round(self.elsewhere, 1))


@dataclass(frozen=True)
class SpotMarket:
    """What is known about spot just now."""

    chain: Chain
    up: bool
    age_h: float
    """For how long it has been as it is."""


@dataclass
class Spells:
    """Counts of what one chain of up and down spells did. Feed it every look, in order of time."""

    up: bool | None = None
    age_h: float = 0.0
    ends: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])
    at_risk_h: list[list[float]] = field(default_factory=lambda: [[0.0] * BINS for _ in range(2)])

    def look(self, up: bool, hours: float) -> None:
        """It is `up` (or not) now, `hours` after the last look."""
        if self.up is not None:
            kind, place = int(self.up), age_bin(self.age_h)
            self.at_risk_h[kind][place] += hours
            self.ends[kind][place] += up != self.up
        self.age_h = hours if up != self.up else self.age_h + hours
        self.up = up

    def counts(self, up: bool) -> tuple[list[float], list[float]]:
        """By age bin: ends of up (or down) spells, and the hours in which they could have ended."""
        return self.ends[int(up)], self.at_risk_h[int(up)]

    def rates(self, up: bool, prior: Rates) -> Rates:
        """Posterior means of the ends per hour."""
        return posterior(prior, *self.counts(up))


def pooled(chains: Sequence[Spells], up: bool) -> tuple[list[float], list[float]]:
    """The counts of several chains together."""
    ends, at_risk_h = zip(*(spells.counts(up) for spells in chains), strict=True)
    return [sum(bins) for bins in zip(*ends, strict=True)], [sum(bins) for bins in zip(*at_risk_h, strict=True)]


def posterior(prior: Rates, ends: Sequence[float], at_risk_h: Sequence[float]) -> Rates:
    """Gamma(PRIOR_EVENTS, PRIOR_EVENTS / prior) on each bin's rate, after `ends` in `at_risk_h` hours: the mean."""
    return tuple(
        (PRIOR_EVENTS + count) / (PRIOR_EVENTS / rate + hours)
        for rate, count, hours in zip(prior, ends, at_risk_h, strict=True)
    )


@dataclass
class Prober:
    """Watches a market of several places and learns its chain, where availability can be seen (traces, simulations)."""

    places: list[Spells]
    pool: Spells = field(default_factory=Spells)
    lost: float = 0.0
    lost_but_up: float = 0.0

    @classmethod
    def of(cls, count: int) -> Prober:
        """For so many places."""
        return cls([Spells() for _ in range(count)])

    def look(self, up: Sequence[bool], hours: float) -> None:
        """Which places have a machine now, `hours` after the last look."""
        anywhere = any(up)
        for spells, now in zip(self.places, up, strict=True):
            if spells.up and not now:
                self.lost += 1
                self.lost_but_up += anywhere
            spells.look(bool(now), hours)
        self.pool.look(anywhere, hours)

    def market(self, chain: Chain) -> SpotMarket:
        """As it stands after the last look, with that chain; an up market has the age of its oldest place."""
        alive = [spells.age_h for spells in self.places if spells.up]
        age = max(alive) if alive else min(spells.age_h for spells in self.places)
        return SpotMarket(chain, bool(alive), age)

    def chain(self) -> Chain:
        """What has been learned."""
        several = len(self.places) > 1
        return Chain(
            machine_ends=posterior(PRIOR_UP, *pooled(self.places, True)),
            up_ends=self.pool.rates(True, PRIOR_UP),
            down_ends=self.pool.rates(False, PRIOR_DOWN),
            elsewhere=(2 * PRIOR_ELSEWHERE + self.lost_but_up) / (2 + self.lost) if several else 0.0,
        )
