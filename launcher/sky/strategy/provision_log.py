"""What SkyPilot has requested from the clouds, from its cluster events and from the log of a launch. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from launcher.policy.model import Place

ANSI = re.compile(r"\x1b\[[0-9;]*m")
LAUNCHING = re.compile(r"Launching(?: \w+)? on (?P<cloud>\w+) (?P<region>\S+?)(?: \((?P<zones>[^)]+)\))?\.\s*$")
"""SkyPilot's line before each zone that it tries; in AWS, before several zones at once."""
MESSAGE = re.compile(r"^(?:[WE] \d\d-\d\d [\d:.]+ PID=\d+ \S+\] |AWS handler error: )(?P<words>.+)$")
"""A warning or an error in SkyPilot's log format, with the cloud's own message. The exception only contains "failed to
acquire resources in us-central1-a", whether it is sold out or over quota."""
MAX_CHARS = 300
"""Characters of a cloud's answer that are kept."""
PROVISIONING = "Provisioning on "
"""Start of the cluster event that SkyPilot writes before each zone that it tries; events have no code, only text."""
LAUNCHED = "Instances launched on "
"""Start of the event after a cloud provided a machine."""


class Answer(NamedTuple):
    """A place that had no machine, and its cloud's message; '' if not known."""

    place: Place
    message: str


class ZoneTry(NamedTuple):
    """One try by SkyPilot, as found in a log."""

    cloud: str
    region: str
    zones: tuple[str, ...]
    message: str


def tries_in(log: str) -> list[ZoneTry]:
    """The tries of a launch, in order; if it succeeded, the last one is the resulting machine."""
    tries: list[ZoneTry] = []
    for line in ANSI.sub("", log).splitlines():
        if match := LAUNCHING.search(line):
            zones = match["zones"] or ""
            tries.append(ZoneTry(match["cloud"].lower(), match["region"], tuple(re.findall(r"[^\s,]+", zones)), ""))
        elif tries and (match := MESSAGE.match(line.strip())):
            tries[-1] = tries[-1]._replace(message=one_line(f"{tries[-1].message} {match['words']}"))
    return tries


def answers(tries: Sequence[ZoneTry], places: Sequence[Place]) -> tuple[Answer, ...]:
    """The tries as places. A log doesn't distinguish spot from on demand: the first in `places` was tried first."""
    left, replies = list(places), []
    for one in tries:
        for zone in one.zones or (None,):
            place = next((place for place in left if _is_at(place, one, zone)), None)
            if place is not None:
                left.remove(place)
                replies.append(Answer(place, one.message))
    return tuple(replies)


def all_refused(replies: Sequence[Answer], places: Sequence[Place], error_text: str) -> tuple[Answer, ...]:
    """An answer for every place. One that SkyPilot skipped gets its region's message: quotas are regional."""
    own = dict(replies)
    region = {(answer.place.cloud, answer.place.region, answer.place.spot): answer.message for answer in replies}
    return tuple(
        Answer(place, own.get(place) or region.get((place.cloud, place.region, place.spot)) or one_line(error_text))
        for place in places
    )


def _is_at(place: Place, tried: ZoneTry, zone: str | None) -> bool:
    return (place.cloud, place.region) == (tried.cloud, tried.region) and zone in (None, place.zone)


def one_line(text: str) -> str:
    """A message, shortened and on one line."""
    return " ".join(text.split())[:MAX_CHARS]


def was_provided(events: Sequence[Mapping[str, Any]], started: datetime) -> bool:
    """Did the last place tried since `started` provide a machine? `events` are newest first, see `requested_at`."""
    for event in events:
        if float(event["transitioned_at"]) < int(started.timestamp()):
            return False
        if str(event["reason"]).startswith((LAUNCHED, PROVISIONING)):
            return str(event["reason"]).startswith(LAUNCHED)
    return False


def count_requests(events: Sequence[Mapping[str, Any]], started: datetime) -> int:
    """Number of zone requests since `started`."""
    since = int(started.timestamp())
    return sum(str(event["reason"]).startswith(PROVISIONING) and event["transitioned_at"] >= since for event in events)


def requested_at(events: Sequence[Mapping[str, Any]], started: datetime) -> datetime:
    """When the resulting machine was requested; `started`, the begin of the search, if no event shows it.

    `events` are the cluster's: `reason`, and `transitioned_at` in whole seconds since 1970. SkyPilot's `launched_at`
    can't be used: it is set again when the machine's runtime is up, 15 to 47 s later (measured on the loopback clouds),
    when the cloud already bills.
    """
    times = [float(event["transitioned_at"]) for event in events if str(event["reason"]).startswith(PROVISIONING)]
    return max(started, datetime.fromtimestamp(max(times), UTC)) if times else started
