"""Offers, estimates and plans."""

from __future__ import annotations

import io
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.gpu_speeds import relative_speed
from launcher.catalog.offers import Catalog, Offer, cheapest_by_kind, find_catalog, load_offers
from launcher.commands.dry_run import limits_of_plan
from launcher.errors import NothingFits
from launcher.planning.explanation import explain
from launcher.planning.plan import MAX_ON_DEMAND_CANDIDATES, DryRun, Plan, ladder, require_plan
from launcher.planning.planner import Planner
from launcher.planning.user_history import MarketHistory
from launcher.planning.work_left import RunProgress
from launcher.policy.limits import limits_of
from launcher.policy.slack_value import Problem, SlackTable, solve
from launcher.policy.spot.preemption_rates import assumed
from launcher.policy.spot.statistics import Counts, MarketCounts
from launcher.report.plan_tables import show_dry_run
from launcher.request import LaunchRequest
from tests.support.plans import A100, A100_80, A100_ONLY, H100, RECIPE, plan


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


def test_spot_is_recommended_where_time_allows(snapshot: Catalog) -> None:
    request, result = plan(snapshot, deadline_h=24.0, **A100_ONLY)
    assert result.recommended == "GCP spot A100:8"
    best = require_plan(result, request)
    assert best.deadline_probability == 1.0
    assert best.cost_p5_usd < best.expected_cost_usd < best.cost_p95_usd
    assert [candidate.cloud for candidate in best.ladder] == ["gcp", "lambda"], (
        "the cheapest on demand of the same GPUs behind it"
    )


def test_a_near_deadline_takes_on_demand(snapshot: Catalog) -> None:
    _, result = plan(snapshot, deadline_h=12.3, **A100_ONLY)
    assert result.recommended == "Lambda on demand A100:8"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline_h": 2.0}, r"no plan meets a deadline of 2.0 h in 95% of runs; .* 0% of runs \(done in 4.8 h"),
        ({"budget_usd": 20.0}, r"no plan meets a budget of \$20.00 in 95% .* 0% of runs \(\$\d+\.\d\d on average"),
        ({"deadline_h": 12.3, "budget_usd": 180.0, **A100_ONLY}, "a deadline of 12.3 h and a budget"),
    ],
)
def test_impossible_limits_say_by_how_much(snapshot: Catalog, limits: dict[str, float], message: str) -> None:
    request, result = plan(snapshot, **limits)
    with pytest.raises(NothingFits, match=message) as caught:
        require_plan(result, request)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("width", "bars"), [(60, 0), (80, 0), (120, 6)])
def test_the_comparison_is_readable_in_a_narrow_terminal(snapshot: Catalog, width: int, bars: int) -> None:
    _, result = plan(snapshot, deadline_h=24.0, budget_usd=300.0)
    output = io.StringIO()
    show_dry_run(Console(width=width, file=output), result)
    lines = output.getvalue().splitlines()
    assert sum(line.startswith("->") for line in lines) == 1
    assert sum("◆" in line for line in lines) == bars, "a bar for each of six plans, if there is room"
    begin = next(number for number, line in enumerate(lines) if line.startswith("plans for"))
    table = lines[begin : next(number for number, line in enumerate(lines) if line.startswith("and "))]
    assert "…" not in "".join(table), "no figure is cut off"
    assert max(map(len, table)) <= width


def test_hours_market_and_hazard_change_the_plan(snapshot: Catalog) -> None:
    _, short = plan(snapshot, hours=6.0, **A100_ONLY)
    _, usual = plan(snapshot, **A100_ONLY)
    assert short.plans[0].expected_cost_usd < usual.plans[0].expected_cost_usd
    _, only = plan(snapshot, market="on-demand")
    assert all(not candidate.spot for p in only.plans for candidate in p.ladder)
    _, spot = plan(snapshot, market="spot")
    assert all(len(p.ladder) == 1 and p.on_demand_h == 0 for p in spot.plans)
    _, calm = plan(snapshot, hazard_h=100.0, **A100_ONLY)
    _, rough = plan(snapshot, deadline_h=24.0, **A100_ONLY)
    assert calm.best is not None
    assert rough.best is not None
    assert calm.best.expected_preemptions < 0.2 < rough.best.expected_preemptions
    assert "--hazard" in calm.best.hazard  # type: ignore[operator]


def test_faster_gpus_need_fewer_hours(snapshot: Catalog) -> None:
    _, result = plan(snapshot, market="on-demand")
    hours = {p.name: p.work_h for p in result.plans}
    assert hours["Lambda on demand A100:8"] == 12
    assert hours["Lambda on demand H100:8"] == pytest.approx(12 * 3854 / 10203)
    assert relative_speed(A100_80, A100, pcie=True) < 1 < relative_speed(A100_80, A100)


def test_a_bucket_in_another_cloud_costs_egress_and_says_so(snapshot: Catalog) -> None:
    _, near = plan(snapshot, deadline_h=24.0, bucket="gs://b", clouds=("gcp",), gpus=(A100,))
    _, far = plan(snapshot, deadline_h=24.0, bucket="s3://b", clouds=("gcp",), gpus=(A100,))
    assert near.best is not None
    assert far.best is not None
    assert near.best.egress_usd == 0
    assert far.best.egress_usd > 5
    assert far.best.expected_cost_usd - near.best.expected_cost_usd == pytest.approx(far.best.egress_usd, abs=0.5)
    assert any("without egress fees" in line for line in far.advice)
    assert not near.advice


def test_egress_makes_a_plan_move_less_and_travels_to_the_run(snapshot: Catalog) -> None:
    near_request, near = plan(snapshot, bucket="gs://b", **A100_ONLY)
    far_request, far = plan(snapshot, bucket="s3://b", **A100_ONLY)
    here, there = (next(p for p in result.plans if p.name == "GCP spot A100:8") for result in (near, far))
    assert here.expected_starts > there.expected_starts > 1 + there.expected_preemptions
    assert there.restore_usd == pytest.approx(58.3 * 0.09, abs=0.2)
    told = explain(there, None, None, ()).rules[-1]
    assert told.startswith(f"expect {there.expected_starts:.1f} machine starts")
    assert f"${there.egress_usd:,.2f} of egress" in told
    limits = limits_of_plan(far_request, there, datetime.now(UTC))
    assert (limits.restore_usd, limits.bucket_cloud) == (there.restore_usd, "aws")
    assert limits.store_usd_per_h == pytest.approx(there.storage_usd / there.expected_finish_h)
    assert limits_of_plan(near_request, here, datetime.now(UTC)).bucket_cloud == "gcp"
    assert limits.save_h == there.upload_h > 0
    assert limits_of({**limits.environment(), "NOTUS_RECIPE": "tiny-dpo"}).save_h == pytest.approx(
        there.upload_h, rel=0.01
    )


def test_flagged_prices_are_taken_on_request_only(snapshot: Catalog) -> None:
    _, careful = plan(snapshot, clouds=("aws",), gpus=(A100,))
    _, trusting = plan(snapshot, clouds=("aws",), gpus=(A100,), trust_prices=True)
    assert careful.plans[0].price_usd_per_hour > 4
    assert trusting.plans[0].price_usd_per_hour == pytest.approx(2.4655)


def test_a_launch_asks_what_was_estimated_and_a_last_resort(snapshot: Catalog) -> None:
    _, result = plan(snapshot, clouds=("gcp", "lambda", "aws"))
    assert sum(p.ladder[0].spot for p in result.plans) > 2
    for chosen in result.plans:
        candidates = ladder(chosen, result.plans)
        assert candidates[: len(chosen.ladder)] == chosen.ladder
        assert not any(candidate.spot for candidate in candidates[len(chosen.ladder) :]), (
            "no other spot market: it was not estimated"
        )
        assert sum(not candidate.spot for candidate in candidates) <= MAX_ON_DEMAND_CANDIDATES
        assert len(set(candidates)) == len(candidates)
        assert len({candidate.gpus for candidate in candidates}) == 1, "another kind of GPU is not bit-exact"
        prices = [p.price_usd_per_hour for candidate in candidates for p in result.plans if p.ladder == (candidate,)]
        assert prices == sorted(prices), "on demand, the policy asks the cheapest first"
    best = result.best
    assert best is not None
    assert len(ladder(best, result.plans)) > len(best.ladder)
    assert any(len({r.gpus for r in ladder(p, result.plans, mixed=True)}) > 1 for p in result.plans)
    _, spot = plan(snapshot, market="spot", clouds=("gcp", "aws"))
    assert [ladder(p, spot.plans) for p in spot.plans] == [p.ladder for p in spot.plans]


def test_a_learned_hazard_comes_before_the_assumed_one(snapshot: Catalog) -> None:
    request = LaunchRequest(recipe="x", deadline_h=24.0, **A100_ONLY)  # type: ignore[arg-type]
    offers = load_offers(snapshot, [A100], request.clouds)
    calm = MarketHistory(("gcp", "A100:8"), MarketCounts(whole=Counts(up_h=(20.0,) * 5 + (900.0,))), runs=9)
    known = Planner(request, RECIPE, offers, "test", {("gcp", "A100:8"): calm}).compare()
    unknown = Planner(request, RECIPE, offers, "test").compare()
    assert known.best is not None
    assert unknown.best is not None
    assert "updated by 9 of your runs" in str(known.best.hazard)
    assert known.best.expected_preemptions < unknown.best.expected_preemptions


def test_the_zones_of_a_plan_are_asked_by_what_is_known_of_each(snapshot: Catalog) -> None:
    """At one price: the calm zone that a run has met, those that nobody knows, the rough one."""
    offers = [
        Offer(
            cloud="gcp", region="r", zone=zone, instance_type="i", gpus="A100:8", spot=spot,
            price_usd_per_hour=8.0 if spot else 16.0,
        )
        for zone, spot in (("rough", True), ("unknown", True), ("calm", True), ("unknown", False))
    ]  # fmt: skip
    zones = {
        "rough": Counts(up_ends=(30.0,) + (0.0,) * 5, up_h=(6.0,) + (0.0,) * 5, machines=30),
        "calm": Counts(up_h=(5.0, 9.0, 20.0, 50.0, 100.0, 300.0), machines=25),
    }

    def spot_plan(learned: dict[tuple[str, str], MarketHistory], **request: float) -> Plan:
        wanted = LaunchRequest(recipe="x", **request)  # type: ignore[arg-type]
        return next(p for p in Planner(wanted, RECIPE, offers, "test", learned).compare().plans if p.ladder[0].spot)

    kind = ("gcp", "A100:8")
    known = spot_plan({kind: MarketHistory(kind, MarketCounts(zones=zones), 3)})
    assert [(zone.zone, zone.basis, zone.own_spells) for zone in known.zones] == [
        ("calm", "own spells", 25), ("unknown", "market", 0), ("rough", "own spells", 30),
    ]  # fmt: skip
    assert known.zones[0].mean_life_h > known.zones[1].mean_life_h > known.zones[2].mean_life_h
    assert "calm 20.9 h (from 25 own spells), rough" in str(known.hazard)
    rule = explain(known, None, None, ()).rules[-2]
    assert rule.startswith("an hour of work is cheapest in calm ($8.00/h, a machine lives 20.9 h, from 25 own spells)")
    assert ", then unknown ($8.00/h" in rule
    assumed = spot_plan({})
    assert {zone.basis for zone in assumed.zones} == {"assumed"}
    assert known.expected_preemptions < assumed.expected_preemptions, "most of the time it is in the calm zone"
    assert {zone.basis for zone in spot_plan({}, hazard_h=5.0).zones} == {"--hazard"}


def test_spot_that_its_restarts_make_dearer_than_on_demand_is_no_plan_and_no_zone() -> None:
    def offer(zone: str, price: float, *, spot: bool = True) -> Offer:
        return Offer(
            cloud="gcp", region="r", zone=zone, instance_type="i", gpus="A100:8", spot=spot, price_usd_per_hour=price
        )  # fmt: skip

    def planned(*offers: Offer, **request: object) -> DryRun:
        return Planner(LaunchRequest(recipe="x", **request), RECIPE, offers, "test").compare()  # type: ignore[arg-type]

    on_demand = offer("a", 16.0, spot=False)
    assert [p.name for p in planned(offer("a", 15.9), on_demand).plans] == ["GCP on demand A100:8"]
    assert [p.name for p in planned(offer("a", 15.9), on_demand, market="spot").plans] == ["GCP spot A100:8"]
    with_dear_ones = planned(offer("a", 8.0), *(offer(f"d{n}", 30.0) for n in range(9)), on_demand)
    assert with_dear_ones.plans == planned(offer("a", 8.0), on_demand).plans
    assert [p.name for p in planned(offer("a", 8.0), on_demand, hazard_h=0.1).plans] == ["GCP on demand A100:8"]


def test_more_zones_make_a_market_no_worse() -> None:
    def planned(zones: int) -> Plan:
        offers = [
            Offer(
                cloud="gcp", region="r", zone=f"z{n}", instance_type="i", gpus="A100:8", spot=spot,
                price_usd_per_hour=8.0 if spot else 16.0,
            )
            for spot, count in ((True, zones), (False, 1)) for n in range(count)
        ]  # fmt: skip
        result = Planner(LaunchRequest(recipe="x"), RECIPE, offers, "test").compare()
        return next(plan for plan in result.plans if plan.ladder[0].spot)

    costs = [planned(zones).expected_cost_usd for zones in (1, 2, 3, 5, 33)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == costs[-2], "what a sixth zone adds is not known"


def test_the_explanation_has_the_table_of_the_policy(snapshot: Catalog) -> None:
    request = LaunchRequest(recipe="x", deadline_h=24.0, **A100_ONLY)  # type: ignore[arg-type]
    planner = Planner(request, RECIPE, load_offers(snapshot, [A100], request.clouds), "test")
    result = planner.compare()
    assert result.best is not None
    hazard = planner.hazard_of(result.best)
    assert hazard is not None
    costs = planner.slack_costs(result.best)
    told = explain(result.best, hazard.chain, 24.0, costs)
    assert [row.work_left_h for row in told.table] == [12.0, 9.0, 6.0, 3.0, pytest.approx(1.2)]
    for row in told.table:
        slacks = list(row.buy_at_slack_h.values())
        assert slacks[1] <= slacks[-1], "a stock-out that has lasted for long is worth less waiting"
    by_deadline = [cost.expected_cost_usd for cost in told.costs]
    assert by_deadline[0] > by_deadline[-1], "patience saves"
    assert not explain(result.best, hazard.chain, None, ()).table
    on_demand = next(p for p in result.plans if not p.ladder[0].spot)
    assert planner.slack_costs(on_demand) == []
    assert "nothing to decide" in explain(on_demand, None, 24.0, ()).rules[0]


@pytest.mark.parametrize(("bucket", "usd"), [("s3://b", (5.21, 5.21)), ("gs://b", (0.0, 6.95)), ("r2://b", (0.0, 0.0))])
def test_the_tables_of_the_policy_count_what_restores_cost(
    monkeypatch: pytest.MonkeyPatch, snapshot: Catalog, bucket: str, usd: tuple[float, float]
) -> None:
    """GCP spot with Lambda behind it, from buckets in three clouds: in the estimate and in its explanation."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    asked: list[Problem] = []

    def noted(problem: Problem) -> SlackTable:
        asked.append(problem)
        return solve(problem)

    for module in ("launcher.planning.planner", "launcher.policy.slack"):
        monkeypatch.setattr(f"{module}.solve", noted)
    request = LaunchRequest(recipe="x", deadline_h=24.0, bucket=bucket, **A100_ONLY)  # type: ignore[arg-type]
    planner = Planner(request, RECIPE, load_offers(snapshot, [A100], request.clouds), "test")
    plan = next(plan for plan in planner.compare().plans if plan.name == "GCP spot A100:8")
    explain(plan, assumed(1).chain, 24.0, ())
    assert len(asked) >= 2
    assert plan.on_demand_usd_per_hour is not None
    for problem in asked:
        assert [one * plan.on_demand_usd_per_hour for one in problem.restores] == pytest.approx(usd, abs=0.02)


def test_ten_thousand_offers_make_few_plans() -> None:
    offers = [
        Offer(
            cloud="gcp", region=f"r{n}", zone=f"r{n}-a", instance_type="i", gpus=f"{gpu}:8", spot=spot,
            price_usd_per_hour=(5 if spot else 10) + n % 97 / 10,
        )
        for n in range(1700) for gpu in ("A100", "A100-80GB", "H100") for spot in (True, False)
    ]  # fmt: skip
    result = Planner(LaunchRequest(recipe="x", deadline_h=24.0), RECIPE, offers, "test").compare()
    assert len(result.offers) == 10_200
    assert len(result.plans) == 6


def test_the_json_has_the_contract(snapshot: Catalog) -> None:
    _, result = plan(snapshot, deadline_h=24.0)
    data = result.model_dump(mode="json")
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
    assert all(math.isfinite(p["cost_p95_usd"]) for p in data["plans"])
    for told in data["plans"]:
        assert told["cost_p5_usd"] - 0.01 <= told["expected_cost_usd"] <= told["cost_p95_usd"] + 0.01


def test_the_last_second_of_a_run_needs_no_table_of_a_million_steps(
    snapshot: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Problem] = []

    def noted(problem: Problem) -> SlackTable:
        asked.append(problem)
        return solve(problem)

    monkeypatch.setattr("launcher.planning.planner.solve", noted)
    request = LaunchRequest(recipe="x", hours=0.02, clouds=("gcp", "lambda"), gpus=(A100,))
    offers = load_offers(snapshot, [A100], request.clouds)
    assert Planner(request, RECIPE, offers, "test", done=RunProgress(share_left=0.001)).compare().plans
    assert asked
    assert max(problem.restart_h / problem.step_h for problem in asked) <= 200
