"""What SkyPilot's events and logs tell of a launch. The texts are those of SkyPilot 0.14.1 on the loopback clouds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from launcher.policy.model import Place
from launcher.sky.strategy.provision_log import (
    Answer,
    all_refused,
    answers,
    count_requests,
    requested_at,
    tries_in,
    was_provided,
)

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
    assert requested_at(events, START) == START.replace(microsecond=0) + timedelta(seconds=50)


def test_without_an_event_of_this_launch_the_whole_search_counts() -> None:
    assert requested_at([], START) == START
    assert requested_at([event(-600, "Provisioning on gcp in me-west1")], START) == START
    assert requested_at([event(0, "Provisioning on gcp in me-west1")], START) == START, "SkyPilot's seconds are whole"


LOG = """\
\x1b[0m\u2699\ufe0e Launching on GCP me-west1\x1b[0m (me-west1-a).
\x1b[2mW 11-26 03:50:40.971 PID=28692 instance_utils.py:155] Got return code 'ZONE_RESOURCE_POOL_EXHAUSTED' in a\x1b[0m
sky.exceptions.ResourcesUnavailableError: Failed to acquire resources in me-west1-a for {GCP([Spot], {'A100': 8})}.
\u21ba Trying other potential resources.
 GCP (me-west1-c)     a2-highgpu-8g[Spot]   96      680       A100:8   11.15
\u2699\ufe0e Launching on AWS us-east-1 (us-east-1a,us-east-1b).
AWS handler error: An error occurred (InsufficientInstanceCapacity) when calling RunInstances
\u2699\ufe0e Launching on Lambda us-east-1.
W 11-26 03:58:20.271 PID=28692 instance.py:125] run_instances error: insufficient-capacity: Not enough capacity
\u2699\ufe0e Launching on GCP me-west1 (me-west1-a).
<sky-payload>"<rich_update>[bold cyan]Launching - Waiting for SSH access[/]</rich_update>"</sky-payload>
\u2514\u2500\u2500 Instance is up.
"""


def place(cloud: str, region: str, zone: str | None, *, spot: bool = True) -> Place:
    return Place(cloud, region, zone, "A100:8", spot, 11.0)


SPOT_A, SPOT_C = place("gcp", "me-west1", "me-west1-a"), place("gcp", "me-west1", "me-west1-c")
ON_DEMAND_A = place("gcp", "me-west1", "me-west1-a", spot=False)
AWS_A, AWS_B = place("aws", "us-east-1", "us-east-1a"), place("aws", "us-east-1", "us-east-1b")
LAMBDA = place("lambda", "us-east-1", None, spot=False)


def test_a_log_tells_which_zones_were_asked_and_what_each_answered() -> None:
    tries = tries_in(LOG)
    order = [SPOT_A, AWS_A, AWS_B, SPOT_C, LAMBDA, ON_DEMAND_A]
    exhausted = "Got return code 'ZONE_RESOURCE_POOL_EXHAUSTED' in a"
    aws = "An error occurred (InsufficientInstanceCapacity) when calling RunInstances"
    assert answers(tries[:-1], order) == (
        (SPOT_A, exhausted),
        (AWS_A, aws),
        (AWS_B, aws),
        (LAMBDA, "run_instances error: insufficient-capacity: Not enough capacity"),
    ), "and me-west1-c was passed over"
    assert answers(tries, order)[-1] == (ON_DEMAND_A, ""), "the second time that its zone was tried"


def test_of_a_search_in_vain_every_place_has_refused() -> None:
    heard = answers(tries_in(LOG)[:1], [SPOT_A, SPOT_C, LAMBDA])
    message = heard[0].message
    assert all_refused(heard, [SPOT_A, SPOT_C, LAMBDA], "no\nroom") == (
        Answer(SPOT_A, message),
        Answer(SPOT_C, message),
        Answer(LAMBDA, "no room"),
    )


def test_events_tell_whether_a_machine_came() -> None:
    given = [event(53, "Instances launched on lambda in us-east-1"), event(50, "Provisioning on lambda in us-east-1")]
    assert was_provided(given, START)
    assert was_provided([event(55, "Setting up SkyPilot runtime on cluster"), *given], START)
    assert not was_provided([event(60, "Provisioning on gcp in us-west3"), *given], START)
    assert not was_provided(given, START + timedelta(hours=1)), "that was another launch"
    assert count_requests([event(60, "Provisioning on gcp in us-west3"), *given], START) == 2
