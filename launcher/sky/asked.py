"""What SkyPilot has asked the clouds for, read from its cluster events and from the log of a launch. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

ASKING = "Provisioning on "
"""Begins the cluster event that SkyPilot writes before each zone that it asks."""


def asked_at(events: Sequence[Mapping[str, Any]], started: datetime) -> datetime:
    """When the machine was asked for that came at last; `started`, the whole search, where no event says so.

    `events` are the cluster's: `reason`, and `transitioned_at` in whole seconds since 1970. SkyPilot's `launched_at`
    is no use: it is set again when the machine's runtime is up, 15 to 47 s later (run on the loopback clouds), and by
    then the cloud bills.
    """
    times = [float(event["transitioned_at"]) for event in events if str(event["reason"]).startswith(ASKING)]
    return max(started, datetime.fromtimestamp(max(times), UTC)) if times else started
