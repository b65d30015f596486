"""The answer of a dry run, by hand on the shipped prices."""

from __future__ import annotations

import pytest

from launcher.catalog.offers import Catalog
from launcher.planning.decision import decide, missing_accounts
from launcher.planning.estimate import START_H
from launcher.report.decision_view import _lines
from tests.support.plans import A100_ONLY, plan


def test_the_answer_is_the_recommended_plans(snapshot: Catalog) -> None:
    request, result = plan(snapshot, deadline_h=24.0, budget_usd=300.0, **A100_ONLY)
    best, told = result.best, decide(result, request, {"gcp"})
    assert best is not None
    assert told is not None
    assert (told.plan, told.cost_usd, told.cost_p95_usd) == (best.name, best.expected_cost_usd, best.cost_p95_usd)
    assert (told.in_time, told.in_budget) == (best.deadline_probability, best.budget_probability)
    on_demand = min(one.expected_cost_usd for one in result.plans if not one.ladder[0].spot)
    assert told.on_demand_usd == on_demand
    assert told.saved_usd == pytest.approx(on_demand - best.expected_cost_usd)
    assert {account.cloud for account in told.accounts} == {candidate.cloud for candidate in best.ladder}
    assert [account.ready for account in told.accounts] == [account.cloud == "gcp" for account in told.accounts]


def test_a_night_without_spot_is_priced_on_demand(snapshot: Catalog) -> None:
    request, result = plan(snapshot, deadline_h=24.0, **A100_ONLY)
    best, told = result.best, decide(result, request, ())
    assert best is not None
    assert told is not None
    assert told.without_spot is not None
    assert best.on_demand_usd_per_hour is not None
    work_h = best.work_h + START_H
    assert told.without_spot.cost_usd == pytest.approx(best.on_demand_usd_per_hour * work_h + best.storage_usd)
    assert told.without_spot.waits_h == pytest.approx(24.0 - work_h)
    assert not told.without_spot.over_budget


def test_spot_alone_waits_and_pays_nothing(snapshot: Catalog) -> None:
    request, result = plan(snapshot, market="spot", **A100_ONLY)
    told = decide(result, request, ())
    assert told is not None
    assert told.without_spot is not None
    assert told.without_spot.cost_usd is None
    assert told.saved_usd is None
    assert dict(_lines(told))["without spot"].startswith("nothing is rented")


def test_a_plan_on_demand_has_no_night_without_spot(snapshot: Catalog) -> None:
    request, result = plan(snapshot, market="on-demand", **A100_ONLY)
    told = decide(result, request, {"lambda"})
    assert told is not None
    assert told.without_spot is None
    assert "saves" not in dict(_lines(told)), "it is the cheapest on demand itself"
    assert missing_accounts(told.accounts) == [account.label for account in told.accounts if account.cloud != "lambda"]


def test_without_a_plan_there_is_no_answer(snapshot: Catalog) -> None:
    request, result = plan(snapshot, budget_usd=1.0, **A100_ONLY)
    assert decide(result, request, ()) is None
