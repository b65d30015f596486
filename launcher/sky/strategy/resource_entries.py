"""Compress an ordered list of places into few entries of a SkyPilot task. Pure.

SkyPilot re-optimizes after each place that has no machine, which takes longer with more entries (0.5 s for 3, 7.5 s for
30, measured on 2 cores). So places that SkyPilot itself would try in the same order become one entry: a whole market,
or the zones of a region. Long lists are split into several requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.policy.model import Place

MAX_ENTRIES = 4
"""Entries per request: another request costs about 6 s, and each entry 0.25 s for every place that is tried."""


class Entry(NamedTuple):
    """One entry of `ordered`: all places below it, cheapest first."""

    example: Place
    """Any of its places: cloud, GPUs and market are the same for all."""
    region: str | None
    zone: str | None


def requests(order: Sequence[Place], known: Sequence[Place]) -> list[list[Entry]]:
    """The requests that try `order`; `known` are all existing places, including those that the task doesn't want."""
    entries = compress(order, known)
    return [entries[start : start + MAX_ENTRIES] for start in range(0, len(entries), MAX_ENTRIES)]


def compress(order: Sequence[Place], known: Sequence[Place]) -> list[Entry]:
    """The fewest entries that give the same order."""
    entries: list[Entry] = []
    rest = list(order)
    while rest:
        entry, size = _largest(rest, known)
        entries.append(entry)
        rest = rest[size:]
    return entries


def _largest(rest: Sequence[Place], known: Sequence[Place]) -> tuple[Entry, int]:
    """The largest entry at the beginning of `rest`, and how many places it covers."""
    first = rest[0]
    market = [place for place in known if _market(place) == _market(first)]
    region = [place for place in market if place.region == first.region]
    if _begins(rest, market):
        return Entry(first, None, None), len(market)
    if _begins(rest, region):
        return Entry(first, first.region, None), len(region)
    return Entry(first, first.region, first.zone), 1


def _begins(rest: Sequence[Place], group: Sequence[Place]) -> bool:
    """Does `rest` begin with exactly these places, cheapest first, and in default order for equal prices?

    If not, the policy had a reason for their order: SkyPilot would treat a zone that was just preempted, or is often
    preempted, like others of the same price.
    """
    return list(rest[: len(group)]) == sorted(group, key=lambda place: (place.price_usd_per_hour, place.where))


def _market(place: Place) -> tuple[str, str, bool]:
    return place.cloud, place.gpus, place.spot
