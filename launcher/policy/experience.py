"""What runs have met of a spot market: how long machines lived, how long there were none. Updates the shipped hazard.

A machine's life counts from its start, because nobody saw when its zone got room: a little too young, which is on the
safe side. A stock-out counts from the first refusal to the next machine of the same market; one whose end nobody
saw counts as long as it was seen, without an end (censored, as it should be for a Poisson rate).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from checkpoints.events import Event
from launcher.hazard import assumed
from launcher.policy.history import hours_of, machines, place_of
from launcher.policy.market import (
    AGE_BINS_H,
    BINS,
    MOST_CHURN,
    PRIOR_DOWN,
    PRIOR_EVENTS,
    PRIOR_UP,
    Chain,
    Met,
    Rates,
    age_bin,
    churned,
    down_ends,
    log_churn,
    world,
)
from launcher.policy.model import Place

Kind = tuple[str, str]
"""Cloud and GPUs."""
NONE = (0.0,) * BINS
NOTHING = Met()


class Counts(BaseModel):
    """Ends, and hours in which they could have come, by age bin."""

    model_config = ConfigDict(frozen=True)

    up_ends: Rates = NONE
    up_h: Rates = NONE
    down_ends: Rates = NONE
    down_h: Rates = NONE

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        names = type(self).model_fields
        return Counts(**{name: _sum(getattr(self, name), getattr(other, name)) for name in names})

    @property
    def preemptions(self) -> int:
        """Seen."""
        return round(sum(self.up_ends))

    @property
    def machine_hours(self) -> float:
        """On spot machines."""
        return sum(self.up_h)

    @property
    def met(self) -> Met:
        """Against the policy's tables."""
        ends = sum(self.up_ends) + sum(self.down_ends)
        return Met(ends, _expected(PRIOR_UP, self.up_h) + _expected(PRIOR_DOWN, self.down_h))

    def chain(self, places: int, before: Met = NOTHING) -> Chain:
        """The shipped tables, faster or slower by the churn that was met, `before` too; unchanged where nothing was."""
        met = self.met.plus(before)
        return churned(log_churn(*met), places) if met.expected else assumed(places).chain

    def world(self, zones: int, before: Met = NOTHING) -> Chain:
        """How a market of so many zones is, after this and `before`: the mean of what tables and counts say."""
        expected = _expected(PRIOR_UP, self.up_h) + _expected(down_ends(1.0, zones), self.down_h)
        met = Met(self.met.ends, expected).plus(before)
        factor = (PRIOR_EVENTS + met.ends) / (PRIOR_EVENTS + met.expected)
        most = math.exp(MOST_CHURN)
        return world(min(max(factor, 1 / most), most), zones)


def counts_of(events: Sequence[Event], now: datetime) -> dict[Kind, Counts]:
    """What one run has met, by cloud and GPUs."""
    found: dict[Kind, Counts] = {}

    def add(kind: Kind, hours: float, *, up: bool, ended: bool) -> None:
        found[kind] = found.get(kind, Counts()).plus(_one(hours, up=up, ended=ended))

    for spell in machines(events):
        if spell.place.spot:
            hours = hours_of((spell.until or now) - spell.since)
            add(_kind(spell.place), hours, up=True, ended=spell.ended == "preempted")
    for kind, hours, ended in _stock_outs(events):
        add(kind, hours, up=False, ended=ended)
    return found


def total(counts: Iterable[Mapping[Kind, Counts]]) -> dict[Kind, Counts]:
    """Of several runs."""
    summed: dict[Kind, Counts] = {}
    for one in counts:
        for kind, found in one.items():
            summed[kind] = summed.get(kind, Counts()).plus(found)
    return summed


def _stock_outs(events: Sequence[Event]) -> list[tuple[Kind, float, bool]]:
    """Each market's spells without a machine: kind, hours, and whether somebody saw the end.

    Of the market and not of each zone: fifty zones that refuse together are one stock-out, not fifty. And none, if the
    fifty-first of the same search had a machine.
    """
    refused: dict[Kind, tuple[datetime, datetime]] = {}
    found = []
    for event in events:
        if event.kind == "no_capacity":
            for kind in {_kind(place) for place in map(place_of, event.data["places"]) if place.spot}:
                refused[kind] = (refused.get(kind, (event.time, event.time))[0], event.time)
        elif event.kind == "machine_up":
            place = place_of(event.data["place"])
            came = _kind(place) if place.spot else None
            if came in refused and refused[came][0] >= datetime.fromisoformat(event.data["since"]):
                del refused[came]
            for kind, (first, last) in refused.items():
                # Of the others the end was not seen: they were out at least until they last said no.
                found.append((kind, hours_of((event.time if kind == came else last) - first), kind == came))
            refused = {}
    return [*found, *((kind, hours_of(last - first), False) for kind, (first, last) in refused.items())]


def _kind(place: Place) -> Kind:
    return place.cloud, place.gpus


def _one(hours: float, *, up: bool, ended: bool) -> Counts:
    at_risk = tuple(max(0.0, min(hours, high) - low) for low, high in AGE_BINS_H)
    ends = tuple(float(ended and number == age_bin(hours)) for number in range(BINS))
    return Counts(up_ends=ends, up_h=at_risk) if up else Counts(down_ends=ends, down_h=at_risk)


def _expected(prior: Rates, hours: Rates) -> float:
    """Ends, by the shipped table."""
    return sum(rate * at_risk for rate, at_risk in zip(prior, hours, strict=True))


def _sum(first: Rates, second: Rates) -> Rates:
    return tuple(a + b for a, b in zip(first, second, strict=True))
