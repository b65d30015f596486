"""Which places of a cloud a task names: none whose price looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.catalog.offers import Catalog, Offer, load_offers
from launcher.commands.dry_run import candidates_of
from launcher.planning.named_places import named_places
from launcher.planning.plan import Candidate
from launcher.planning.planner import Planner
from launcher.request import LaunchRequest
from launcher.sky.render import task_config
from tests.support.plans import A100, A100_80, RECIPE

GCP = Candidate(cloud="gcp", gpus="A100:8", spot=True)
AWS = GCP.model_copy(update={"cloud": "aws"})


def offer(zone: str, usd: float = 10.0, *flags: str, **other: Any) -> Offer:
    values = {"cloud": "gcp", "region": zone.rsplit("-", 1)[0], "zone": zone, "instance_type": "i", "gpus": "A100:8"}
    return Offer(**values | {"spot": True, "price_usd_per_hour": usd, "flags": flags} | other)


def aws(zone: str, region: str, usd: float = 10.0, *flags: str) -> Offer:
    return offer(zone, usd, *flags, cloud="aws", region=region)


def named(*offers: Offer, candidate: Candidate = GCP, **how: bool) -> list[str]:
    found = named_places([candidate], offers, **how)
    assert all(one.model_copy(update={"region": None, "zone": None}) == candidate for one in found)
    return ["/".join(name for name in (one.region, one.zone) if name) or one.cloud for one in found]


def test_a_cloud_without_a_flagged_zone_is_named_as_a_whole() -> None:
    assert named(offer("us-a"), offer("us-b"), offer("eu-a")) == ["gcp"]
    assert named(candidate=GCP) == ["gcp"], "of which no offer is known"


def test_else_the_trusted_regions_and_zones_are_named_cheapest_first() -> None:
    found = named(
        offer("us-a", 9.0), offer("us-b", 2.0, "wrong"), offer("us-c", 8.0), offer("eu-a", 8.5), offer("eu-b")
    )
    assert found == ["us/us-c", "eu", "us/us-a"]
    assert named(offer("us-a", 1.0, "wrong"), offer("eu-a")) == ["eu"]


def test_another_market_of_the_cloud_is_another_matter() -> None:
    wrong = offer("us-a", 1.0, "wrong", spot=False)
    assert named(offer("us-a"), offer("eu-a"), wrong, offer("us-b", 1.0, "wrong", gpus="H100:8")) == ["gcp"]
    assert named(offer("us-a"), offer("us-b", 1.0, "wrong", fits=False)) == ["gcp"], "SkyPilot is asked for more memory"


def test_a_zone_with_one_wrong_machine_type_is_left_out() -> None:
    """SkyPilot takes the cheapest."""
    assert named(offer("us-a", 1.0, "wrong"), offer("us-a", instance_type="j"), offer("us-b", 12.0)) == ["us/us-b"]


def test_trusted_prices_open_all_but_those_of_nothing() -> None:
    offers = (offer("us-a"), offer("us-b", 2.0, "wrong"), offer("eu-a", 0.0, "zero price"))
    assert named(*offers[:2], trust_prices=True) == ["gcp"]
    assert named(*offers, trust_prices=True) == ["us"]


def test_a_cloud_without_zones_is_named_by_its_regions() -> None:
    there, wrong = (
        offer(name, 10.0, *flags).model_copy(update={"region": name, "zone": None})
        for name, flags in (("a", ()), ("b", ("wrong",)))
    )
    assert named(there, wrong) == ["a"]


def test_zones_of_aws_are_named_by_name_only() -> None:
    """An id is not what SkyPilot calls the zone as soon as it knows the account."""
    by_id = (
        aws("use1-az1", "us-east-1", 1.0, "wrong"),
        aws("use1-az2", "us-east-1", 9.0),
        aws("use2-az1", "us-east-2"),
    )
    assert named(*by_id, candidate=AWS) == ["us-east-2"]
    assert named(*by_id[:2], candidate=AWS) == ["us-east-1/use1-az2"], (
        "there is nothing else, and it opens no flagged zone"
    )
    far = aws("usw2-az1", "us-west-2", 1.0, "wrong")
    assert named(*by_id, far, candidate=AWS, strategy_checks=True) == ["us-east-1", "us-east-2"], (
        "NOTUS checks each zone"
    )
    by_name = (aws("us-east-1a", "us-east-1", 1.0, "wrong"), aws("us-east-1b", "us-east-1", 9.0))
    assert named(*by_name, candidate=AWS) == ["us-east-1/us-east-1b"]


@pytest.mark.parametrize("strategy", ["SkyPilot's own", "NOTUS"])
def test_the_task_of_a_launch_opens_no_zone_whose_price_looks_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot: Catalog, strategy: str
) -> None:
    """GCP asks less for A100-80GB on demand than for spot in three zones: SkyPilot would begin there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("launcher.commands.dry_run.strategy_here", lambda: strategy)
    request = LaunchRequest(recipe="x", gpus=(A100_80,), clouds=("gcp",), market="on-demand")
    result = Planner(request, RECIPE, load_offers(snapshot, [A100_80], ["gcp"]), "test").compare()
    assert result.best is not None
    entries = task_config(RECIPE, candidates_of(request, result.best, result), run="r", bucket=None)["resources"][
        "ordered"
    ]
    assert [entry["infra"] for entry in entries] == ["gcp/us-east4", "gcp/us-east5", "gcp/asia-southeast1"]
    trusting = request.model_copy(update={"trust_prices": True})
    assert [candidate.region for candidate in candidates_of(trusting, result.best, result)] == [None]


def test_a_task_without_a_flagged_zone_is_what_it_was(snapshot: Catalog) -> None:
    request = LaunchRequest(recipe="x", gpus=(A100,), clouds=("gcp", "lambda"), deadline_h=24)
    result = Planner(request, RECIPE, load_offers(snapshot, [A100], request.clouds), "test").compare()
    assert result.best is not None
    infra = [entry["infra"] for entry in task_config(
        RECIPE, candidates_of(request, result.best, result), run="r", bucket=None
    )["resources"]["ordered"]]  # fmt: skip
    assert infra == ["gcp", "lambda", "gcp"]
