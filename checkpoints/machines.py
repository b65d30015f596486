"""The machines that a run was given, as its diary tells."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from checkpoints.events import RUN_ENDS, Event

CLOUD_NOTICES = frozenset({"gcp", "aws", "file"})
"""Sources of a notice that mean a preemption: the others are people, signals and moves."""


class Machine(NamedTuple):
    """One that the run had, or has (`until` None)."""

    place: dict[str, Any]
    """cloud, region, gpus, spot, price_usd_per_hour, ...: as the launcher wrote it."""
    since: datetime
    until: datetime | None
    ended: str | None

    def cost_usd(self, now: datetime) -> float:
        """Until its end, or until `now`."""
        hours = ((self.until or now) - self.since).total_seconds() / 3600
        return hours * float(self.place["price_usd_per_hour"])


def machines_of(events: Sequence[Event]) -> list[Machine]:
    """Oldest first. The end of the run ends its machine too."""
    found: list[Machine] = []
    before: datetime | None = None
    for event in events:
        last = found[-1] if found else None
        if event.kind == "planned" and last and last.until is None:
            # A launch finds no machine of an earlier job: it ended after its last word, at a time that nobody wrote.
            found[-1] = last._replace(until=max(last.since, before or last.since), ended="unknown")
        if event.kind == "machine_up":
            since = datetime.fromisoformat(event.data["since"])
            if last and last.until is None:  # its end was never written: the controller was killed in between
                found[-1] = last._replace(until=since, ended="unknown")
            found.append(Machine(event.data["place"], since, None, None))
        elif last and found[-1].until is None and (event.kind == "machine_gone" or _ends_run(event)):
            ended = event.data["why"] if event.kind == "machine_gone" else event.kind
            found[-1] = last._replace(until=event.time, ended=ended)
        before = event.time
    return found


def told_by(notices: Sequence[str]) -> str:
    """How to call the end of an attempt that was told to stop, by the sources of its notices: it says "preempted"
    whoever told it."""
    if "move" in notices:
        return "moved"
    return "preempted" if any(source in CLOUD_NOTICES for source in notices) else "stopped"


def _ends_run(event: Event) -> bool:
    return event.kind in RUN_ENDS or (event.kind == "attempt_ended" and event.data.get("outcome") == "user_error")
