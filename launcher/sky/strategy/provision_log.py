"""What SkyPilot has asked the clouds for, read from its cluster events and from the log of a launch. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from launcher.policy.model import Place

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LAUNCHING = re.compile(r"Launching(?: \w+)? on (?P<cloud>\w+) (?P<region>\S+?)(?: \((?P<zones>[^)]+)\))?\.\s*$")
"""SkyPilot's line before each zone that it asks; before several zones at once in AWS."""
SAID = re.compile(r"^(?:[WE] \d\d-\d\d [\d:.]+ PID=\d+ \S+\] |AWS handler error: )(?P<words>.+)$")
"""A warning or an error in SkyPilot's log format: the cloud's own words. The exception says only "failed to acquire
resources in us-central1-a", be it sold out or over quota."""
LONGEST = 300
"""Characters of a cloud's answer that are kept."""
ASKING = "Provisioning on "
"""Begins the cluster event that SkyPilot writes before each zone that it asks; its events have no code, only text."""
GIVEN = "Instances launched on "
"""Begins the event after a cloud gave a machine."""


class Answer(NamedTuple):
    """A place that had no machine, and what its cloud said; '' where nobody heard it."""

    place: Place
    said: str


class Tried(NamedTuple):
    """One try of SkyPilot's, as a log tells of it."""

    cloud: str
    region: str
    zones: tuple[str, ...]
    said: str


def tries_in(log: str) -> list[Tried]:
    """The tries of a launch, in order; of one that succeeded the last is the machine that came."""
    found: list[Tried] = []
    for line in ANSI.sub("", log).splitlines():
        if match := LAUNCHING.search(line):
            zones = match["zones"] or ""
            found.append(Tried(match["cloud"].lower(), match["region"], tuple(re.findall(r"[^\s,]+", zones)), ""))
        elif found and (match := SAID.match(line.strip())):
            found[-1] = found[-1]._replace(said=one_line(f"{found[-1].said} {match['words']}"))
    return found


def answers(tries: Sequence[Tried], places: Sequence[Place]) -> tuple[Answer, ...]:
    """The tries as places. A log doesn't tell spot from on demand: what stands first in `places` was tried first."""
    left, found = list(places), []
    for one in tries:
        for zone in one.zones or (None,):
            place = next((place for place in left if _is_at(place, one, zone)), None)
            if place is not None:
                left.remove(place)
                found.append(Answer(place, one.said))
    return tuple(found)


def all_refused(heard: Sequence[Answer], places: Sequence[Place], otherwise: str) -> tuple[Answer, ...]:
    """Every place: one that SkyPilot passed over shares the words of its region, as a quota is the whole region's."""
    own = dict(heard)
    region = {(answer.place.cloud, answer.place.region, answer.place.spot): answer.said for answer in heard}
    return tuple(
        Answer(place, own.get(place) or region.get((place.cloud, place.region, place.spot)) or one_line(otherwise))
        for place in places
    )


def _is_at(place: Place, tried: Tried, zone: str | None) -> bool:
    return (place.cloud, place.region) == (tried.cloud, tried.region) and zone in (None, place.zone)


def one_line(text: str) -> str:
    """What somebody said, short and on one line."""
    return " ".join(text.split())[:LONGEST]


def was_given(events: Sequence[Mapping[str, Any]], started: datetime) -> bool:
    """Did the last place that was asked since `started` give a machine? `events` are newest first, see `asked_at`."""
    for event in events:
        if float(event["transitioned_at"]) < int(started.timestamp()):
            return False
        if str(event["reason"]).startswith((GIVEN, ASKING)):
            return str(event["reason"]).startswith(GIVEN)
    return False


def count_asked(events: Sequence[Mapping[str, Any]], started: datetime) -> int:
    """How many times a zone was asked since then."""
    since = int(started.timestamp())
    return sum(str(event["reason"]).startswith(ASKING) and event["transitioned_at"] >= since for event in events)


def asked_at(events: Sequence[Mapping[str, Any]], started: datetime) -> datetime:
    """When the machine was asked for that came at last; `started`, the whole search, where no event says so.

    `events` are the cluster's: `reason`, and `transitioned_at` in whole seconds since 1970. SkyPilot's `launched_at`
    is no use: it is set again when the machine's runtime is up, 15 to 47 s later (run on the loopback clouds), and by
    then the cloud bills.
    """
    times = [float(event["transitioned_at"]) for event in events if str(event["reason"]).startswith(ASKING)]
    return max(started, datetime.fromtimestamp(max(times), UTC)) if times else started
