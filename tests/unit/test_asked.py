"""What SkyPilot's events and logs tell of a launch. The texts are those of SkyPilot 0.14.1 on the loopback clouds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from launcher.sky.asked import asked_at

START = datetime(2026, 11, 26, 3, 50, 39, 500_000, tzinfo=UTC)


def event(seconds: int, reason: str) -> dict[str, Any]:
    return {"reason": reason, "transitioned_at": int(START.timestamp()) + seconds}


def test_the_search_through_sold_out_zones_is_not_paid() -> None:
    events = [
        event(133, "All nodes up; SkyPilot runtime healthy."),
        event(85, "Cluster successfully provisioned with 1 nodes"),
        event(53, "Instances launched on lambda in us-east-1"),
        event(50, "Provisioning on lambda in us-east-1"),
        event(46, "Provisioning on gcp in us-west3"),
        event(3, "Provisioning on gcp in me-west1"),
        event(0, "Provisioning on gcp in me-west1"),
        event(-600, "Provisioning on gcp in me-west1"),
    ]
    assert asked_at(events, START) == START.replace(microsecond=0) + timedelta(seconds=50)


def test_without_an_event_of_this_launch_the_whole_search_counts() -> None:
    assert asked_at([], START) == START
    assert asked_at([event(-600, "Provisioning on gcp in me-west1")], START) == START
    assert asked_at([event(0, "Provisioning on gcp in me-west1")], START) == START, "SkyPilot's seconds are whole"
