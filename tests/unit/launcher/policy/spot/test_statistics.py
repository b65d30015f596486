"""What runs teach about spot markets: counted from their diaries, kept at home, used by plans and by the run itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_log.event_kinds import MachineUp
from checkpoints.run_log.event_log import Event
from launcher.catalog.offers import Offer
from launcher.planning import user_history
from launcher.planning.explanation import explain
from launcher.planning.planner import Planner
from launcher.policy.decide import decide
from launcher.policy.limits import Limits
from launcher.policy.model import Launch, Place
from launcher.policy.observe import hours_to_preemption, observe
from launcher.policy.run_history import place_data
from launcher.policy.spot.market import BINS, PRIOR_DOWN, PRIOR_UP, Chain, churned, mean_spell_h
from launcher.policy.spot.statistics import MarketCounts, counts_of, total, tuned_chain
from launcher.request import LaunchRequest
from tests.support.plans import RECIPE

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


def useful_life(place: Place, number: int, hours: float) -> list[Event]:
    """As `life`, with a start and a step that it has committed: else the policy bounds the effort."""

    def of_attempt(kind: str, after_h: float, **data: Any) -> Event:
        return Event(time=at(number + after_h), id=f"{kind}{number}", kind=kind, attempt=number + 1, data=data)

    up, gone = life(place, number, number + hours)
    trained = of_attempt("training", 0.1, step=30 * number + 1, total_steps=1000)
    return [up, trained, of_attempt("saved", hours, step=30 * number + 30), gone]


def refused(hours: float, *places: Place) -> Event:
    return event("no_capacity", hours, places=[place_data(place) for place in places], reasons=[])


def chain(counts: MarketCounts, zones: tuple[str, ...] = ("us-a",)) -> Chain:
    return tuned_chain((counts.spell_ends().churn_in(zone) for zone in zones), len(zones))


def test_lives_of_spot_machines_are_exposure_and_preemptions_ends() -> None:
    events = [*life(A, 0, 3), *life(B, 3.2, 3.3), *life(ON_DEMAND, 4, 9, "moved"), *life(A, 9, 11, "moved")]
    counts = counts_of(events, at(20))["gcp", "A100:8"]
    assert counts.preemptions == 2, "a move is no preemption, and on demand doesn't count"
    assert counts.machine_hours == pytest.approx(3 + 0.1 + 2)
    assert counts.total.up_ends == (1, 0, 0, 1, 0, 0), "one fresh, one after 3 h"
    assert counts.total.up_h[0] == pytest.approx(0.2 + 0.1 + 0.2)
    lives = {zone: (own.machines, own.preemptions, own.machine_hours) for zone, own in counts.zones.items()}
    assert lives == {"us-a": (2, 1, pytest.approx(5)), "us-b": (1, 1, pytest.approx(0.1))}, "each zone by itself"
    assert ("lambda", "A100:8") not in counts_of(events, at(20))


def test_a_machine_that_still_runs_counts_up_to_now() -> None:
    counts = counts_of(life(A, 0, 3)[:1], at(2))["gcp", "A100:8"]
    assert (counts.machine_hours, counts.preemptions) == (2, 0)


def test_a_stock_out_is_the_markets_and_ends_with_its_next_machine() -> None:
    """Fifty zones that refuse together are one event; as fifty, an hour of it made a market look three times calmer."""
    zones = [Place("gcp", "us", f"us-{number}", "A100:8", True, 11.0) for number in range(50)]
    events = [refused(0, *zones), refused(0.5, *zones), *life(zones[0], 1.0, 2.0)]
    counts = counts_of(events, at(3))["gcp", "A100:8"]
    assert sum(counts.whole.down_ends) == 1
    assert sum(counts.whole.down_h) == pytest.approx(1.0)
    assert chain(counts, ("us-0", "us-1")).machine_ends[0] > churned(-0.5, 2).machine_ends[0]
    elsewhere = counts_of([refused(0, A), refused(0.5, A), *life(ON_DEMAND, 1.0, 2.0)], at(3))["gcp", "A100:8"]
    assert (sum(elsewhere.whole.down_ends), sum(elsewhere.whole.down_h)) == (0, 0.5), "nobody saw the end"
    assert counts_of([refused(0, ON_DEMAND)], at(1)) == {}


def test_a_zone_that_refuses_beside_one_that_has_a_machine_is_no_stock_out() -> None:
    refusal, (up, _) = refused(1.0, A, B), life(A, 1.001, 2.0)
    same_search = up.model_copy(update={"payload": MachineUp(**{**up.data, "since": at(0.99)})})
    assert counts_of([refusal, same_search], at(1.001))["gcp", "A100:8"].whole.down_ends == (0,) * 6
    out_before = counts_of([refused(0.5, A, B), refusal, same_search], at(1.001))["gcp", "A100:8"]
    assert sum(out_before.whole.down_ends) == 1


def test_the_churn_that_was_met_scales_the_shipped_tables() -> None:
    usual = churned(0.0, 1)
    assert chain(MarketCounts()) == usual
    calm = counts_of([x for n in range(10) for x in life(A, 20 * n, 20 * n + 15, "moved")], at(300))["gcp", "A100:8"]
    assert all(now < prior for now, prior in zip(chain(calm).machine_ends, usual.machine_ends, strict=True))
    rough = counts_of([x for n in range(10) for x in life(A, n, n + 0.1)], at(300))["gcp", "A100:8"]
    assert chain(rough).machine_ends[0] > 2 * PRIOR_UP[0]
    assert chain(rough).down_ends[0] > 2 * PRIOR_DOWN[0]


def test_runs_add_up() -> None:
    one = counts_of(life(A, 0, 3), at(3))
    assert total([one, one])["gcp", "A100:8"].machine_hours == 6
    assert total([]) == {}


def test_a_run_is_remembered_once_however_often_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    assert user_history.learned() == {}
    user_history.record_run("s3://b/one", life(A, 0, 3)[:1], at(1))
    for _ in range(2):
        user_history.record_run("s3://b/one", life(A, 0, 3), at(3))
    user_history.record_run("s3://b/two", life(A, 0, 2, "moved"), at(3))
    user_history.record_run("file:///local", [event("planned", 0)], at(3))
    user_history.record_run("s3://b/three", life(replace(A, cloud="aws"), 0, 9), at(10))
    known = user_history.learned()
    source = known["gcp", "A100:8"].hazard(["us-a"]).source
    assert "updated by 2 of your runs, 1 preemptions in 5 machine hours: spot in one zone" in source
    assert source.endswith(" h (from 2 own spells)")
    aws = known["aws", "A100:8"]
    assert "updated by 1 of your runs" in aws.hazard(["us-a", "us-b"]).source, "the runs that saw that market"
    assert aws.hazard(["us-a"]).world.elsewhere == 0 < aws.hazard(["us-a", "us-b"]).world.elsewhere
    assert user_history.learned(without="s3://b/one")["gcp", "A100:8"].runs == 1
    user_history.experience_path().write_text("not json")
    assert user_history.learned() == {}


def test_a_file_of_before_there_were_zones_counts_for_the_market(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    old = '{"runs": {"s3://b/one": [{"cloud": "gcp", "gpus": "A100:8", "counts": {"up_ends": [9, 0, 0, 0, 0, 0], '
    old += '"up_h": [1.8, 0, 0, 0, 0, 0], "down_ends": [0, 0, 0, 0, 0, 0], "down_h": [0, 0, 0, 0, 0, 0]}}]}}'
    user_history.experience_path().write_text(old)
    known = user_history.learned()["gcp", "A100:8"]
    assert known.counts.preemptions == 9
    assert known.spell_ends.churn_in("us-a") == known.spell_ends.churn_in("us-b") > 1.5


def test_what_a_zone_was_like_shows_in_its_own_life(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The dry run's hazard: the zone asked first is the world's, the others follow it, and each says where it is from."""
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    events = [
        x for n in range(12) for x in (*life(A, 30 * n, 30 * n + 0.3), *life(B, 30 * n + 1, 30 * n + 20, "moved"))
    ]
    user_history.record_run("s3://b/one", events, at(400))
    known = user_history.learned()["gcp", "A100:8"]
    told = known.hazard(["us-b", "us-a", "us-c"])
    rough, calm, unseen = (told.life_in(zone) for zone in ("us-a", "us-b", "us-c"))
    assert rough.mean_h < unseen.mean_h < calm.mean_h
    assert [(one.basis, one.own_spells) for one in (rough, calm, unseen)] == [
        ("own spells", 12), ("own spells", 12), ("market", 0)
    ]  # fmt: skip
    assert mean_spell_h(told.world.machine_ends) == pytest.approx(calm.mean_h), "it is asked first"
    assert told.ends_elsewhere is not None
    assert rough.mean_h < mean_spell_h(told.ends_elsewhere) < calm.mean_h
    assert "us-b" in told.source
    assert "us-c" not in told.source
    assert told.source.index("us-b") < told.source.index("us-a"), "in the order in which they are asked"


def test_too_little_is_not_called_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    user_history.record_run("s3://b/one", life(A, 0, 0.5), at(3))
    assert user_history.learned() == {}


def test_a_home_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "file"))
    user_history.record_run("s3://b/one", life(A, 0, 3), at(3))
    assert user_history.learned() == {}


def test_the_policy_of_a_run_learns_from_the_run_itself() -> None:
    def ends(events: list[Event], **limits: Any) -> tuple[float, ...]:
        told = Limits(hours=8, deadline=at(48), **limits)
        seen = observe(events, None, (A, B, ON_DEMAND), told, at(24))
        assert seen.market is not None
        return seen.market.chain.machine_ends

    rough = [x for n in range(20) for x in life(A, n, n + 0.1)]
    assert ends(rough)[0] > 1.5 * ends([])[0]
    spell_ends = user_history.MarketHistory(("gcp", "A100:8"), counts_of(rough, at(24))["gcp", "A100:8"], 1).spell_ends
    assert ends([], spell_ends={("gcp", "A100:8"): spell_ends})[0] > 1.5 * ends([])[0], "and from the runs before it"
    assert ends([], spell_ends={("aws", "A100:8"): spell_ends}) == ends([]), "in the same market"
    assert ends(rough, hazard_h=4.0) == (0.25,) * BINS, "--hazard is taken as it is"


def test_the_policy_of_a_run_asks_the_calm_zone_before_the_rough_one() -> None:
    rough = [x for n in range(20) for x in useful_life(A, n, 0.4)]
    before = {("gcp", "A100:8"): counts_of(rough, at(24))["gcp", "A100:8"].spell_ends()}
    for events, spell_ends in ((rough, {}), ([], before)):
        for deadline in (None, at(72)):
            seen = observe(
                events, None, (A, B, ON_DEMAND), Limits(hours=8, deadline=deadline, spell_ends=spell_ends), at(24)
            )
            hazards = [known.hazard_per_h for known in seen.places]
            assert hazards[0] > seen.hazard_per_h > hazards[1] > 0  # type: ignore[operator]
            assert hazards[2] is None, "on demand"
            action = decide(seen)
            assert isinstance(action, Launch)
            spot = [place for place in action.places if place.spot]
            assert spot[0] == B
            assert spot in ([B, A], [B]), "at an equal price"
    lives = [hours_to_preemption(rough, (A, B, ON_DEMAND), Limits(hours=8), at(24), place) for place in (A, B)]
    assert lives[0] < lives[1], "the trainer is told of its own zone"


def test_a_cheap_zone_is_not_worth_its_preemptions() -> None:
    cheap = replace(A, price_usd_per_hour=10.6)

    def first(events: list[Event]) -> Place:
        action = decide(observe(events, None, (cheap, B, ON_DEMAND), Limits(hours=8), at(24)))
        assert isinstance(action, Launch)
        return action.places[0]

    assert first([]) == A
    assert first([x for n in range(20) for x in useful_life(A, n, 0.4)]) == B


# --- AWS: price lists have ids of zones, machines and diaries an account's names ---------------------


def aws_offer(region: str, zone: str) -> Offer:
    return Offer(
        cloud="aws", region=region, zone=zone, instance_type="p4d", gpus="A100:8", spot=True, price_usd_per_hour=9.0
    )  # fmt: skip


def met_in_aws(monkeypatch: pytest.MonkeyPatch, home: Path, *zones: str) -> None:
    """Ten machines in each zone that lived for an hour and a half."""
    monkeypatch.setenv("NOTUS_HOME", str(home))
    places = [Place("aws", "us-east-1", zone, "A100:8", True, 9.0) for zone in zones]
    lives = [life(place, 2 * n, 2 * n + 1.5) for place in places for n in range(10)]
    user_history.record_run("s3://b/one", [event for one in lives for event in one], at(20))


def test_what_was_met_in_a_zone_of_aws_reaches_the_plan_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    met_in_aws(monkeypatch, tmp_path, "us-east-1a")
    offers = [aws_offer("us-east-1", "us-east-1a"), aws_offer("us-east-1", "us-east-1b")]
    hazard = user_history.learned(offers=offers)["aws", "A100:8"].hazard(["us-east-1a", "us-east-1b"])
    assert hazard.life_in("us-east-1a").basis == "own spells"
    assert hazard.life_in("us-east-1b").basis == "market"
    assert hazard.life_in("us-east-1a").mean_h > hazard.life_in("us-east-1b").mean_h, "calmer than is usual"


def test_without_names_it_is_known_by_region(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    met_in_aws(monkeypatch, tmp_path, "us-east-1a", "us-east-1b")
    offers = [
        aws_offer("us-east-1", "use1-az1"),
        aws_offer("us-east-1", "use1-az2"),
        aws_offer("us-west-2", "usw2-az1"),
    ]
    known = user_history.learned(offers=offers)["aws", "A100:8"]
    hazard = known.hazard([offer.area for offer in offers])
    lives = [hazard.life_in(offer.area) for offer in offers]
    assert [(one.basis, one.own_spells) for one in lives] == [("region", 20), ("region", 20), ("market", 0)]
    assert lives[0] == lives[1], "which of them it was, nobody knows"
    assert lives[0].mean_h > lives[2].mean_h, "calmer than is usual"
    assert "us-east-1 " in hazard.source
    assert "(from 20 own spells)" in hazard.source
    assert set(known.spell_ends.zones) == {"us-east-1a", "us-east-1b"}, "the controller knows them by name"


def test_a_diary_with_ids_is_read_by_name_once_the_names_are_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    met_in_aws(monkeypatch, tmp_path, "use1-az1")
    known = user_history.learned(names={"use1-az1": "us-east-1c"})["aws", "A100:8"]
    assert set(known.spell_ends.zones) == {"us-east-1c"}
    assert known.hazard(["us-east-1c"]).life_in("us-east-1c").own_spells == 10
    same = user_history.learned(offers=[aws_offer("us-east-1", "use1-az1")])["aws", "A100:8"]
    assert same.hazard(["use1-az1"]).life_in("use1-az1").basis == "own spells", "both by id"


def test_the_explanation_says_that_it_is_the_regions_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    met_in_aws(monkeypatch, tmp_path, "us-east-1a")
    offers = [aws_offer("us-east-1", "use1-az1"), aws_offer("us-east-1", "use1-az1").model_copy(update={"spot": False})]
    request = LaunchRequest(recipe="x", market="spot")
    planner = Planner(request, RECIPE, offers, "test", user_history.learned(offers=offers))
    (plan,) = planner.compare().plans
    assert [(zone.zone, zone.basis) for zone in plan.zones] == [("use1-az1", "region")]
    assert any("from 10 own spells in its region" in rule for rule in explain(plan, None, None, ()).rules)
