"""What runs have met of a spot market: how long machines lived, how long there were none. Updates the shipped hazard.

Lives are counted by zone, stock-outs by market (zones.py says what they make of each other).

A machine's life counts from its start, because nobody saw when its zone got room: a little too young, which is on the
safe side. A stock-out counts from the first refusal to the next machine of the same market; one whose end nobody
saw counts as long as it was seen, without an end (censored, as it should be for a Poisson rate).
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
    Met,
    Rates,
    age_bin,
    churned,
    down_ends,
    tuned,
    world,
)
from launcher.policy.spot.zone_pooling import MarketMet, mean_churn

Kind = tuple[str, str]
"""Cloud and GPUs."""
NONE = (0.0,) * BINS


class Counts(BaseModel):
    """Ends, and hours in which they could have come, by age bin."""

    model_config = ConfigDict(frozen=True)

    up_ends: Rates = NONE
    up_h: Rates = NONE
    down_ends: Rates = NONE
    down_h: Rates = NONE
    machines: int = 0
    """Spot machines whose lives these are."""

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            up_ends=_sum(self.up_ends, other.up_ends),
            up_h=_sum(self.up_h, other.up_h),
            down_ends=_sum(self.down_ends, other.down_ends),
            down_h=_sum(self.down_h, other.down_h),
            machines=self.machines + other.machines,
        )

    @property
    def preemptions(self) -> int:
        """Seen."""
        return round(sum(self.up_ends))

    @property
    def machine_hours(self) -> float:
        """On spot machines."""
        return sum(self.up_h)

    def met(self, zones: int = 1) -> Met:
        """Against the tables: stock-outs of so many zones end sooner."""
        ends = sum(self.up_ends) + sum(self.down_ends)
        return Met(ends, _expected(PRIOR_UP, self.up_h) + _expected(down_ends(1.0, zones), self.down_h))


class MarketCounts(BaseModel):
    """Of one market."""

    model_config = ConfigDict(frozen=True)

    whole: Counts = Counts()
    """Its stock-outs, and machines in no known zone."""
    zones: dict[str, Counts] = {}
    """The machines of each zone."""

    def plus(self, other: MarketCounts) -> MarketCounts:
        """Both together."""
        zones = dict(self.zones)
        for name, counts in other.zones.items():
            zones[name] = zones.get(name, Counts()).plus(counts)
        return MarketCounts(whole=self.whole.plus(other.whole), zones=zones)

    @property
    def total(self) -> Counts:
        """All zones together."""
        return reduce(Counts.plus, self.zones.values(), self.whole)

    @property
    def preemptions(self) -> int:
        """Seen."""
        return self.total.preemptions

    @property
    def machine_hours(self) -> float:
        """On spot machines."""
        return self.total.machine_hours

    def met(self, zones: int = 1) -> MarketMet:
        """Against the tables of a market of so many zones; of one for the policy, whose tables know no number."""
        return MarketMet(self.whole.met(zones), {name: counts.met() for name, counts in self.zones.items()})


def tuned_chain(churns: Iterable[float], places: int) -> Chain:
    """What the policy computes with where the zones that it may ask have these churns."""
    return churned(tuned(mean_churn(churns)), places)


def world_of(churns: Iterable[float], zones: int) -> Chain:
    """How a market of so many zones is where these have those churns: the mean of what tables and counts say."""
    return world(mean_churn(churns), zones)


def counts_of(events: Sequence[Event], now: datetime) -> dict[Kind, MarketCounts]:
    """What one run has met, by cloud and GPUs."""
    found: dict[Kind, MarketCounts] = {}

    def add(kind: Kind, met: MarketCounts) -> None:
        found[kind] = found.get(kind, MarketCounts()).plus(met)

    for spell in machines(events):
        if spell.place.spot:
            hours = hours_of((spell.until or now) - spell.since)
            life = _life(hours, ended=spell.ended == "preempted")
            add(kind_of(spell.place), MarketCounts(zones={spell.place.area: life}))
    for kind, hours, ended in _stock_outs(events):
        add(kind, MarketCounts(whole=_stock_out(hours, ended=ended)))
    return found


def total(counts: Iterable[Mapping[Kind, MarketCounts]]) -> dict[Kind, MarketCounts]:
    """Of several runs."""
    summed: dict[Kind, MarketCounts] = {}
    for one in counts:
        for kind, found in one.items():
            summed[kind] = summed.get(kind, MarketCounts()).plus(found)
    return summed


def _stock_outs(events: Sequence[Event]) -> list[tuple[Kind, float, bool]]:
    """Each market's spells without a machine: kind, hours, and whether somebody saw the end.

    Of the market and not of each zone: fifty zones that refuse together are one stock-out, not fifty. And none, if the
    fifty-first of the same search had a machine.
    """
    refused: dict[Kind, tuple[datetime, datetime]] = {}
    found = []
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
                    # Of the others the end was not seen: they were out at least until they last said no.
                    found.append((kind, hours_of((event.time if kind == came else last) - first), kind == came))
                refused = {}
    return [*found, *((kind, hours_of(last - first), False) for kind, (first, last) in refused.items())]


def kind_of(place: Place | PlaceRecord) -> Kind:
    """The market that a place belongs to."""
    return place.cloud, place.gpus


def _life(hours: float, *, ended: bool) -> Counts:
    ends, at_risk_h = _spell(hours, ended=ended)
    return Counts(up_ends=ends, up_h=at_risk_h, machines=1)


def _stock_out(hours: float, *, ended: bool) -> Counts:
    ends, at_risk_h = _spell(hours, ended=ended)
    return Counts(down_ends=ends, down_h=at_risk_h)


def _spell(hours: float, *, ended: bool) -> tuple[Rates, Rates]:
    """Its end, if somebody saw one, and the hours at risk."""
    at_risk_h = tuple(max(0.0, min(hours, high) - low) for low, high in AGE_BINS_H)
    return tuple(float(ended and number == age_bin(hours)) for number in range(BINS)), at_risk_h


def _expected(prior: Rates, hours: Rates) -> float:
    """Ends, by the shipped table."""
    return sum(rate * at_risk for rate, at_risk in zip(prior, hours, strict=True))


def _sum(first: Rates, second: Rates) -> Rates:
    return tuple(a + b for a, b in zip(first, second, strict=True))
