"""An ordered list of places as few entries of a SkyPilot task. Pure.

SkyPilot optimizes anew after each place that has no machine, and that takes longer the more entries there are (0.5 s
for 3, 7.5 s for 30, run on 2 cores). So places that SkyPilot itself would try in the same order become one entry: a
whole market, or the zones of a region; and long lists go in several requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.policy.model import Place

MAX_ENTRIES = 4
"""In one request: another request costs some 6 s, each entry 0.25 s for every place that is tried."""


class Entry(NamedTuple):
    """One entry of `ordered`: all places below it, cheapest first."""

    example: Place
    """Any of its places: cloud, GPUs and market are those of all."""
    region: str | None
    zone: str | None


def requests(order: Sequence[Place], known: Sequence[Place]) -> list[list[Entry]]:
    """The requests that try `order`; `known` are all places that there are, also those that the task doesn't want."""
    entries = compress(order, known)
    return [entries[start : start + MAX_ENTRIES] for start in range(0, len(entries), MAX_ENTRIES)]


def compress(order: Sequence[Place], known: Sequence[Place]) -> list[Entry]:
    """The fewest entries with the same order."""
    entries: list[Entry] = []
    rest = list(order)
    while rest:
        entry, size = _largest(rest, known)
        entries.append(entry)
        rest = rest[size:]
    return entries


def _largest(rest: Sequence[Place], known: Sequence[Place]) -> tuple[Entry, int]:
    """The largest entry that begins `rest`, and how many places it stands for."""
    first = rest[0]
    market = [place for place in known if _market(place) == _market(first)]
    region = [place for place in market if place.region == first.region]
    if _begins(rest, market):
        return Entry(first, None, None), len(market)
    if _begins(rest, region):
        return Entry(first, first.region, None), len(region)
    return Entry(first, first.region, first.zone), 1


def _begins(rest: Sequence[Place], group: Sequence[Place]) -> bool:
    """Does `rest` begin with exactly these places, cheapest first, and those of one price as they come anyway?

    Else the policy had a reason for their order: SkyPilot would try a zone that was just taken away, or a rough one, as
    if it were like the others of its price.
    """
    return list(rest[: len(group)]) == sorted(group, key=lambda place: (place.price_usd_per_hour, place.where))


def _market(place: Place) -> tuple[str, str, bool]:
    return place.cloud, place.gpus, place.spot
