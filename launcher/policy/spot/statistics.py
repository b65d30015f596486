"""Spot market statistics of runs: how long machines and stock-outs lasted. Updates the shipped hazard.

Machine lives are counted by zone, stock-outs by market (zone_pooling.py combines them).

A machine's life counts from its start, because the time when its zone got capacity is not known. This makes it a little
too young, which is on the safe side. A stock-out counts from the first refusal to the next machine of the same market.
One whose end was not seen counts for as long as it was seen, without an end (censored, as a Poisson rate needs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce

from pydantic import BaseModel, ConfigDict

from checkpoints.run_log.event_kinds import MachineUp, NoCapacity, PlaceRecord
from checkpoints.run_log.event_log import Event
from launcher.policy.model import Place
from launcher.policy.run_history import hours_of, machines
from launcher.policy.spot.market import (
    AGE_BINS_H,
    BINS,
    PRIOR_UP,
    Chain,
    Rates,
    SpellEnds,
    age_bin,
    churned,
    down_ends,
    tuned,
    world,
)
from launcher.policy.spot.zone_pooling import MarketEnds, mean_churn

MarketKey = tuple[str, str]
"""Cloud and GPUs."""
NONE = (0.0,) * BINS


class Counts(BaseModel):
    """Ends of spells, and the hours at risk, by age bin."""

    model_config = ConfigDict(frozen=True)

    up_ends: Rates = NONE
    up_h: Rates = NONE
    down_ends: Rates = NONE
    down_h: Rates = NONE
    machines: int = 0
    """Number of spot machines counted."""

    def plus(self, other: Counts) -> Counts:
        """The sum of both."""
        return Counts(
            up_ends=_sum(self.up_ends, other.up_ends),
            up_h=_sum(self.up_h, other.up_h),
            down_ends=_sum(self.down_ends, other.down_ends),
            down_h=_sum(self.down_h, other.down_h),
            machines=self.machines + other.machines,
        )

    @property
    def preemptions(self) -> int:
        """Preemptions observed."""
        return round(sum(self.up_ends))

    @property
    def machine_hours(self) -> float:
        """Hours on spot machines."""
        return sum(self.up_h)

    def spell_ends(self, zones: int = 1) -> SpellEnds:
        """Ends against those that the tables expect; stock-outs of several zones end sooner."""
        ends = sum(self.up_ends) + sum(self.down_ends)
        return SpellEnds(ends, _expected(PRIOR_UP, self.up_h) + _expected(down_ends(1.0, zones), self.down_h))


class MarketCounts(BaseModel):
    """Counts for one market."""

    model_config = ConfigDict(frozen=True)

    whole: Counts = Counts()
    """Its stock-outs, and machines whose zone is not known."""
    zones: dict[str, Counts] = {}
    """Machines by zone."""

    def plus(self, other: MarketCounts) -> MarketCounts:
        """The sum of both."""
        zones = dict(self.zones)
        for name, counts in other.zones.items():
            zones[name] = zones.get(name, Counts()).plus(counts)
        return MarketCounts(whole=self.whole.plus(other.whole), zones=zones)

    @property
    def total(self) -> Counts:
        """The sum over all zones."""
        return reduce(Counts.plus, self.zones.values(), self.whole)

    @property
    def preemptions(self) -> int:
        """Preemptions observed."""
        return self.total.preemptions

    @property
    def machine_hours(self) -> float:
        """Hours on spot machines."""
        return self.total.machine_hours

    def spell_ends(self, zones: int = 1) -> MarketEnds:
        """Ends against the tables of a market of `zones` zones; 1 for the policy, whose tables have no number."""
        return MarketEnds(
            self.whole.spell_ends(zones), {name: counts.spell_ends() for name, counts in self.zones.items()}
        )


def tuned_chain(churns: Iterable[float], places: int) -> Chain:
    """The chain that the policy computes with if the zones it may use have these churns."""
    return churned(tuned(mean_churn(churns)), places)


def world_of(churns: Iterable[float], zones: int) -> Chain:
    """The behaviour of a market of `zones` zones with the mean of these churns."""
    return world(mean_churn(churns), zones)


def counts_of(events: Sequence[Event], now: datetime) -> dict[MarketKey, MarketCounts]:
    """Counts of one run, by cloud and GPUs."""
    counts: dict[MarketKey, MarketCounts] = {}

    def add(kind: MarketKey, new: MarketCounts) -> None:
        counts[kind] = counts.get(kind, MarketCounts()).plus(new)

    for spell in machines(events):
        if spell.place.spot:
            hours = hours_of((spell.until or now) - spell.since)
            life = _life(hours, ended=spell.ended == "preempted")
            add(kind_of(spell.place), MarketCounts(zones={spell.place.area: life}))
    for kind, hours, ended in _stock_outs(events):
        add(kind, MarketCounts(whole=_stock_out(hours, ended=ended)))
    return counts


def total(counts: Iterable[Mapping[MarketKey, MarketCounts]]) -> dict[MarketKey, MarketCounts]:
    """The sum over several runs."""
    summed: dict[MarketKey, MarketCounts] = {}
    for one in counts:
        for kind, market in one.items():
            summed[kind] = summed.get(kind, MarketCounts()).plus(market)
    return summed


def _stock_outs(events: Sequence[Event]) -> list[tuple[MarketKey, float, bool]]:
    """Each market's spells without a machine: kind, hours, and whether the end was observed.

    They are counted by market, not by zone: fifty zones that refuse together are one stock-out, not fifty, and none at
    all if the fifty-first zone of the same search had a machine.
    """
    refused: dict[MarketKey, tuple[datetime, datetime]] = {}
    stock_outs = []
    for event in events:
        match event.payload:
            case NoCapacity(places=places):
                for kind in {kind_of(place) for place in places if place.spot}:
                    refused[kind] = (refused.get(kind, (event.time, event.time))[0], event.time)
            case MachineUp(place=record, since=since):
                came = kind_of(record) if record.spot else None
                if came in refused and refused[came][0] >= since:
                    del refused[came]
                for kind, (first, last) in refused.items():
                    # The end of the others was not observed: they were out at least until their last refusal.
                    stock_outs.append((kind, hours_of((event.time if kind == came else last) - first), kind == came))
                refused = {}
    return [*stock_outs, *((kind, hours_of(last - first), False) for kind, (first, last) in refused.items())]


def kind_of(place: Place | PlaceRecord) -> MarketKey:
    """The market that a place belongs to."""
    return place.cloud, place.gpus


def _life(hours: float, *, ended: bool) -> Counts:
    ends, at_risk_h = _spell(hours, ended=ended)
    return Counts(up_ends=ends, up_h=at_risk_h, machines=1)


def _stock_out(hours: float, *, ended: bool) -> Counts:
    ends, at_risk_h = _spell(hours, ended=ended)
    return Counts(down_ends=ends, down_h=at_risk_h)


def _spell(hours: float, *, ended: bool) -> tuple[Rates, Rates]:
    """The end by age bin, if it was observed, and the hours at risk."""
    at_risk_h = tuple(max(0.0, min(hours, high) - low) for low, high in AGE_BINS_H)
    return tuple(float(ended and number == age_bin(hours)) for number in range(BINS)), at_risk_h


def _expected(prior: Rates, hours: Rates) -> float:
    """Ends expected by the shipped table."""
    return sum(rate * at_risk for rate, at_risk in zip(prior, hours, strict=True))


def _sum(first: Rates, second: Rates) -> Rates:
    return tuple(a + b for a, b in zip(first, second, strict=True))
