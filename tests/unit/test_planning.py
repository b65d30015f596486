"""Offers, estimates and plans."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest

from launcher.errors import NothingFits
from launcher.estimate import START_H, estimate, preemption_counts
from launcher.hazard import ASSUMED_SPOT, ON_DEMAND, Hazard
from launcher.offers import Catalog, cheapest_by_kind, find_catalog, load_offers
from launcher.plan import MAX_ON_DEMAND_RUNGS, dry_run, ladder, require_plan, wanted_gpus
from launcher.request import Gpus, LaunchRequest
from trainer.recipe import load_recipe

RECIPE = load_recipe("notus-7b-dpo")
A100, A100_80, H100 = Gpus("A100", 8), Gpus("A100-80GB", 8), Gpus("H100", 8)


@pytest.fixture
def snapshot(tmp_path: Path) -> Catalog:
    return find_catalog({"HOME": str(tmp_path)})


def test_gcp_adds_vm_and_accelerator(snapshot: Catalog) -> None:
    offers = load_offers(snapshot, [A100], ["gcp"])
    central = {offer.spot: offer for offer in offers if offer.zone == "us-central1-a"}
    assert central[False].price_usd_per_hour == pytest.approx(29.38708)  # 5.91582 + 23.47126
    assert central[True].price_usd_per_hour == pytest.approx(14.43080)  # 2.958 + 11.4728
    assert central[True].instance_type == "a2-highgpu-8g"


def test_lambda_has_on_demand_only(snapshot: Catalog) -> None:
    offers = load_offers(snapshot, [A100, A100_80, H100], ["lambda"])
    assert {offer.spot for offer in offers} == {False}
    assert {offer.gpus: offer.price_usd_per_hour for offer in offers} == {
        "A100:8": 15.92,
        "A100-80GB:8": 22.32,
        "H100:8": 31.92,
    }


def test_odd_prices_are_flagged_and_never_the_cheapest_trusted(snapshot: Catalog) -> None:
    offers = load_offers(snapshot, [A100, A100_80, H100])
    flagged = {(offer.cloud, offer.zone, offer.gpus, offer.spot) for offer in offers if offer.flags}
    assert ("gcp", "us-central1-a", "A100-80GB:8", False) in flagged  # accelerator on demand below its own spot price
    assert ("aws", "use1-az1", "A100:8", True) in flagged  # 2.47 where its sisters ask about 8
    assert ("gcp", "us-central1-a", "A100:8", False) not in flagged
    assert not any(offer.cloud == "vast" and offer.spot for offer in offers)
    assert all(not offer.flags for offer in cheapest_by_kind(offers))


def test_the_users_catalog_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / ".sky/catalogs/v8/lambda"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice\n"
        "gpu_8x_a100,A100,8.0,124.0,1800.0,10.32,us-east-1,,\n"
    )
    catalog = find_catalog({"HOME": str(tmp_path)})
    assert str(tmp_path) in catalog.source
    offers = load_offers(catalog, [A100])
    assert [offer.price_usd_per_hour for offer in offers if offer.cloud == "lambda"] == [10.32]
    assert any(offer.cloud == "gcp" for offer in offers), "clouds that the user's catalog lacks come from the snapshot"
    assert find_catalog({"HOME": "/", "SKY_RUNTIME_DIR": str(tmp_path)}) == catalog


def test_a_node_that_nobody_sells(snapshot: Catalog) -> None:
    with pytest.raises(NothingFits, match="no offer for A100:3 in lambda") as caught:
        load_offers(snapshot, [Gpus("A100", 3)], ["lambda"])
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 2.0])
def test_preemption_counts_are_a_distribution(rate: float) -> None:
    hazard = Hazard(preemptions_per_hour=rate, waiting_h=0.2, lost_work_h=0.1, source="test")
    counts = list(preemption_counts(hazard, 12.0))
    assert sum(p for _, p in counts) == pytest.approx(1, abs=1e-8)
    assert sum(n * p for n, p in counts) == pytest.approx(rate * 12 / (1 - rate * 0.1), rel=1e-6)


def test_the_estimate_agrees_with_simulated_runs() -> None:
    hazard, price, work, deadline = ASSUMED_SPOT, 10.0, 12.0, 14.0
    generator = random.Random(1)

    def run() -> tuple[float, float, int]:
        to_do, running, waiting, count = work, START_H, 0.0, 0
        while True:
            until = generator.expovariate(hazard.preemptions_per_hour)
            if until >= to_do:
                return (running + to_do) * price, running + to_do + waiting, count
            # preempted: what was done is kept but for the work since the last save
            to_do += hazard.lost_work_h - until
            running += until + START_H
            waiting += hazard.waiting_h
            count += 1

    runs = [run() for _ in range(20_000)]
    got = estimate(price_usd_per_hour=price, work_h=work, hazard=hazard, deadline_h=deadline)
    assert got.expected_cost_usd == pytest.approx(statistics.mean(cost for cost, _, _ in runs), rel=0.01)
    assert got.expected_finish_h == pytest.approx(statistics.mean(hours for _, hours, _ in runs), rel=0.01)
    assert got.expected_preemptions == pytest.approx(statistics.mean(n for _, _, n in runs), rel=0.03)
    by_cost = sorted(cost for cost, _, _ in runs)
    assert got.cost_p95_usd == pytest.approx(by_cost[int(0.95 * len(by_cost))], rel=0.03)
    in_time = sum(hours <= deadline for _, hours, _ in runs) / len(runs)
    assert got.deadline_probability == pytest.approx(in_time, abs=0.02)


def test_on_demand_is_certain() -> None:
    got = estimate(price_usd_per_hour=10, work_h=12, hazard=ON_DEMAND, deadline_h=12.2)
    assert got.expected_cost_usd == got.cost_p95_usd == pytest.approx((12 + START_H) * 10)
    assert got.expected_preemptions == 0
    assert got.deadline_probability == 0


def test_a_hopeless_hazard_is_an_error() -> None:
    with pytest.raises(ValueError, match="faster than the work"):
        list(preemption_counts(Hazard(preemptions_per_hour=10, waiting_h=0, lost_work_h=0.2, source=""), 1.0))


def plan(snapshot: Catalog, **request: object) -> tuple[LaunchRequest, object]:
    wanted = LaunchRequest(recipe="notus-7b-dpo", **request)  # type: ignore[arg-type]
    offers = load_offers(snapshot, wanted_gpus(wanted, RECIPE), wanted.clouds or ("gcp", "lambda"))
    return wanted, dry_run(wanted, RECIPE, offers, "test")


def test_spot_is_recommended_where_time_allows(snapshot: Catalog) -> None:
    request, result = plan(snapshot, deadline_h=24.0)
    assert result.recommended == "GCP spot A100:8"  # type: ignore[attr-defined]
    best = require_plan(result, request)  # type: ignore[arg-type]
    assert best.deadline_probability is not None
    assert best.deadline_probability > 0.99


def test_a_near_deadline_takes_on_demand(snapshot: Catalog) -> None:
    _, result = plan(snapshot, deadline_h=12.5)
    assert result.recommended == "Lambda on demand A100:8"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline_h": 5.0}, "no plan keeps a deadline of 5.0 h"),
        ({"budget_usd": 20.0}, r"no plan keeps a budget of \$20.00: the cheapest costs \$144"),
        ({"deadline_h": 12.5, "budget_usd": 180.0}, "a deadline of 12.5 h and a budget"),
    ],
)
def test_impossible_limits_say_by_how_much(snapshot: Catalog, limits: dict[str, float], message: str) -> None:
    request, result = plan(snapshot, **limits)
    with pytest.raises(NothingFits, match=message) as caught:
        require_plan(result, request)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3


def test_hours_and_market_change_the_plan(snapshot: Catalog) -> None:
    _, short = plan(snapshot, hours=6.0)
    _, usual = plan(snapshot)
    assert short.plans[0].expected_cost_usd < usual.plans[0].expected_cost_usd  # type: ignore[attr-defined]
    _, only = plan(snapshot, market="on-demand")
    assert all(not rung.spot for p in only.plans for rung in p.ladder)  # type: ignore[attr-defined]


def test_the_ladder_tries_spot_first_and_few_on_demand_places(snapshot: Catalog) -> None:
    _, result = plan(snapshot, clouds=("gcp", "lambda"))
    rungs = ladder(result.plans[0], result.plans)  # type: ignore[attr-defined]
    markets = [rung.spot for rung in rungs]
    assert markets == sorted(markets, reverse=True)
    assert markets.count(False) == MAX_ON_DEMAND_RUNGS
    assert len(set(rungs)) == len(rungs)


def test_smaller_gpus_than_the_recipes_do_not_fit(snapshot: Catalog) -> None:
    big = RECIPE.model_copy(update={"hardware": RECIPE.hardware.model_copy(update={"gpus": "A100-80GB:8"})})
    request = LaunchRequest(recipe="x", gpus=(A100, A100_80))
    result = dry_run(request, big, load_offers(snapshot, request.gpus, ["lambda"]), "test")
    assert {offer.gpus: offer.fits for offer in result.offers} == {"A100:8": False, "A100-80GB:8": True}
    assert [p.name for p in result.plans] == ["Lambda on demand A100-80GB:8"]


def test_the_json_has_the_contract(snapshot: Catalog) -> None:
    _, result = plan(snapshot, deadline_h=24.0)
    data = result.model_dump(mode="json")  # type: ignore[attr-defined]
    offer_keys = {"cloud", "region", "zone", "instance_type", "gpus", "spot", "price_usd_per_hour", "fits", "flags"}
    assert data["offers"][0].keys() >= offer_keys
    assert data["plans"][0].keys() >= {
        "name",
        "expected_cost_usd",
        "cost_p95_usd",
        "expected_finish_h",
        "finish_p95_h",
        "expected_preemptions",
        "deadline_probability",
        "egress_usd",
        "storage_usd",
    }
    assert data.keys() >= {"recommended", "assumptions"}
    assert not any(math.isnan(p["cost_p95_usd"]) for p in data["plans"])
