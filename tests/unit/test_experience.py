"""What runs teach about spot markets: counted from their diaries, kept at home, used by plans and by the run itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from checkpoints.events import Event
from launcher import experience
from launcher.policy.experience import Counts, counts_of, total
from launcher.policy.history import place_data
from launcher.policy.limits import Limits
from launcher.policy.market import BINS, PRIOR_DOWN, PRIOR_UP, churned
from launcher.policy.model import Place
from launcher.policy.observe import observe

START = datetime(2026, 11, 24, 20, tzinfo=UTC)
A, B = (Place("gcp", "us", f"us-{zone}", "A100:8", True, 11.0) for zone in "ab")
ON_DEMAND = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def event(kind: Any, hours: float, **data: Any) -> Event:
    return Event(time=at(hours), id=f"{hours:09.3f}", kind=kind, attempt=0, data=data)


def life(place: Place, since: float, until: float, why: str = "preempted") -> list[Event]:
    return [
        event("machine_up", since, place=place_data(place), since=at(since).isoformat()),
        event("machine_gone", until, place=place_data(place), why=why),
    ]


def refused(hours: float, *places: Place) -> Event:
    return event("no_capacity", hours, places=[place_data(place) for place in places], reasons=[])


def test_lives_of_spot_machines_are_exposure_and_preemptions_ends() -> None:
    events = [*life(A, 0, 3), *life(B, 3.2, 3.3), *life(ON_DEMAND, 4, 9, "moved"), *life(A, 9, 11, "moved")]
    counts = counts_of(events, at(20))["gcp", "A100:8"]
    assert counts.preemptions == 2, "a move is no preemption, and on demand doesn't count"
    assert counts.machine_hours == pytest.approx(3 + 0.1 + 2)
    assert counts.up_ends == (1, 0, 0, 1, 0, 0), "one fresh, one after 3 h"
    assert counts.up_h[0] == pytest.approx(0.2 + 0.1 + 0.2)
    assert ("lambda", "A100:8") not in counts_of(events, at(20))


def test_a_machine_that_still_runs_counts_up_to_now() -> None:
    counts = counts_of(life(A, 0, 3)[:1], at(2))["gcp", "A100:8"]
    assert (counts.machine_hours, counts.preemptions) == (2, 0)


def test_a_stock_out_is_the_markets_and_ends_with_its_next_machine() -> None:
    """Fifty zones that refuse together are one event; as fifty, an hour of it made a market look three times calmer."""
    zones = [Place("gcp", "us", f"us-{number}", "A100:8", True, 11.0) for number in range(50)]
    events = [refused(0, *zones), refused(0.5, *zones), *life(zones[0], 1.0, 2.0)]
    counts = counts_of(events, at(3))["gcp", "A100:8"]
    assert sum(counts.down_ends) == 1
    assert sum(counts.down_h) == pytest.approx(1.0)
    assert counts.chain(50).machine_ends[0] > churned(-0.5, 50).machine_ends[0]
    elsewhere = counts_of([refused(0, A), refused(0.5, A), *life(ON_DEMAND, 1.0, 2.0)], at(3))["gcp", "A100:8"]
    assert (sum(elsewhere.down_ends), sum(elsewhere.down_h)) == (0, 0.5), "nobody saw the end"
    assert counts_of([refused(0, ON_DEMAND)], at(1)) == {}


def test_a_zone_that_refuses_beside_one_that_has_a_machine_is_no_stock_out() -> None:
    refusal, (up, _) = refused(1.0, A, B), life(A, 1.001, 2.0)
    same_search = up.model_copy(update={"data": {**up.data, "since": at(0.99).isoformat()}})
    assert counts_of([refusal, same_search], at(1.001))["gcp", "A100:8"].down_ends == (0,) * 6
    out_before = counts_of([refused(0.5, A, B), refusal, same_search], at(1.001))["gcp", "A100:8"]
    assert sum(out_before.down_ends) == 1


def test_the_churn_that_was_met_scales_the_shipped_tables() -> None:
    usual = churned(0.0, 1)
    assert Counts().chain(1) == usual
    calm = counts_of([x for n in range(10) for x in life(A, 20 * n, 20 * n + 15, "moved")], at(300))["gcp", "A100:8"]
    assert all(now < prior for now, prior in zip(calm.chain(1).machine_ends, usual.machine_ends, strict=True))
    rough = counts_of([x for n in range(10) for x in life(A, n, n + 0.1)], at(300))["gcp", "A100:8"]
    assert rough.chain(1).machine_ends[0] > 2 * PRIOR_UP[0]
    assert rough.chain(1).down_ends[0] > 2 * PRIOR_DOWN[0]


def test_runs_add_up() -> None:
    one = counts_of(life(A, 0, 3), at(3))
    assert total([one, one])["gcp", "A100:8"].machine_hours == 6
    assert total([]) == {}


def test_a_run_is_remembered_once_however_often_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    assert experience.learned() == {}
    experience.remember("s3://b/one", life(A, 0, 3)[:1], at(1))
    for _ in range(2):
        experience.remember("s3://b/one", life(A, 0, 3), at(3))
    experience.remember("s3://b/two", life(A, 0, 2, "moved"), at(3))
    experience.remember("file:///local", [event("planned", 0)], at(3))
    experience.remember("s3://b/three", life(replace(A, cloud="aws"), 0, 9), at(10))
    known = experience.learned()
    assert known["gcp", "A100:8"].hazard(1).measured
    source = known["gcp", "A100:8"].hazard(1).source
    assert "updated by 2 runs of yours, 1 preemptions in 5 machine hours: spot in one zone" in source
    assert "updated by 1 runs of yours" in known["aws", "A100:8"].hazard(2).source, "the runs that saw that market"
    assert known["aws", "A100:8"].hazard(1).world.elsewhere == 0 < known["aws", "A100:8"].hazard(2).world.elsewhere
    assert experience.learned(without="s3://b/one")["gcp", "A100:8"].runs == 1
    experience.experience_path().write_text("not json")
    assert experience.learned() == {}


def test_too_little_is_not_called_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    experience.remember("s3://b/one", life(A, 0, 0.5), at(3))
    assert experience.learned() == {}


def test_a_home_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "file"))
    experience.remember("s3://b/one", life(A, 0, 3), at(3))
    assert experience.learned() == {}


def test_the_policy_of_a_run_learns_from_the_run_itself() -> None:
    def chain(events: list[Event], **limits: Any) -> tuple[float, ...]:
        told = Limits(hours=8, deadline=at(48), **limits)
        seen = observe(events, None, (A, B, ON_DEMAND), told, at(24))
        assert seen.market is not None
        return seen.market.chain.machine_ends

    rough = [x for n in range(20) for x in life(A, n, n + 0.1)]
    assert chain(rough)[0] > 1.5 * chain([])[0]
    met = experience.Experience(("gcp", "A100:8"), counts_of(rough, at(24))["gcp", "A100:8"], 1).met
    assert chain([], met={("gcp", "A100:8"): met})[0] > 1.5 * chain([])[0], "and from the runs before it"
    assert chain([], met={("aws", "A100:8"): met}) == chain([]), "in the same market"
    assert chain(rough, hazard_h=4.0) == (0.25,) * BINS, "--hazard is taken as it is"
