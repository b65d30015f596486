"""A run's diary as lines for people."""

from __future__ import annotations

import re
from typing import Any

from checkpoints.events import Event
from launcher.policy.history import place_of
from launcher.policy.model import Place

QUOTA = re.compile(r"quota|limit:? ?exceeded|max\w*countexceeded", re.IGNORECASE)
GCP_LIMIT = re.compile(r"Quota '[^']+' exceeded\. Limit: [\d.]+")
SOLD_OUT = re.compile(
    r"exhausted|insufficient\w*.?\w*.?capacity|not (have )?enough (resources|capacity)", re.IGNORECASE
)
SHOWN = 3
"""Places that are named of those with the same answer."""
WORDS = 120
"""Characters of an answer that is neither."""


def line_of(event: Event) -> str | None:
    """An event in one line; None for what isn't worth one."""
    data = event.data
    match event.kind:
        case "decided":
            return f"{data['action']}: {data['reason']}" + (f"; first {data['first']}" if "first" in data else "")
        case "machine_up":
            place = place_of(data["place"])
            return f"machine: {place}, ${place.price_usd_per_hour:.2f}/h"
        case "machine_gone":
            said = f": {data['said'][:WORDS]}" if data.get("said") else ""
            return f"machine gone ({data['why']}): {place_of(data['place'])}{said}"
        case "no_capacity":
            return f"no machine in {len(data['places'])} places: {_refusals(data)}"
        case "false_recovery":
            return "SkyPilot took the machine for dead, but it trains: nothing is restarted"
        case "alarm":
            return f"no new step for {data['stuck_s'] / 60:.0f} min (step {data['step']}, {data['phase']})"
        case "resumed":
            return f"attempt {event.attempt} goes on from step {data['step']}"
        case "training":
            links = "".join(f"; {link}" for link in data.get("links", ()))
            return f"attempt {event.attempt}: first step done ({data['step']}/{data['total_steps']}){links}"
        case "notice":
            return f"attempt {event.attempt}: told to stop ({data['source']}); saving"
        case "attempt_ended":
            said = f": {data['message']}" if data.get("message") else ""
            return f"attempt {event.attempt} ended at step {data['step']}: {data['outcome']}{said}"
        case "failed":
            hint = f" ({data['hint']})" if data.get("hint") else ""
            return f"failed: {data.get('message', 'no reason given')}{hint}"
        case "stopped":
            return f"stopped: {data.get('reason') or 'on request'}; the state is saved"
    return None


def _refusals(data: dict[str, Any]) -> str:
    """Which places said what, those with the same answer together, cheapest first."""
    if "answers" not in data:  # of a run of an earlier version
        return "; ".join(data["reasons"][:SHOWN]) or "no reason given"
    groups: dict[str, list[Place]] = {}
    for place, said in zip(data["places"], data["answers"], strict=True):
        groups.setdefault(_in_short(said), []).append(place_of(place))
    return "; ".join(f"{answer}: {_some(group)}" for answer, group in groups.items())


def _in_short(said: str) -> str:
    if QUOTA.search(said):
        limit = GCP_LIMIT.search(said)
        return f"over quota ({limit[0]})" if limit else "over quota"
    return "sold out" if SOLD_OUT.search(said) else said[:WORDS] or "no reason given"


def _some(places: list[Place]) -> str:
    """The cheapest of them by zone and price."""
    cheapest = sorted(places, key=lambda place: place.price_usd_per_hour)
    named = ", ".join(
        f"{place.where} ({'spot, ' if place.spot else ''}${place.price_usd_per_hour:.2f}/h)"
        for place in cheapest[:SHOWN]
    )
    return named + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")
