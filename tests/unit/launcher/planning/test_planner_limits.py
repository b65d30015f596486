"""Limits that no plan keeps, and what a plan says of its bucket."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from checkpoints.run_log.event_kinds import MachineUp, Saved, Stopped, Training
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.storage.list_prices import AMAZON_S3 as S3
from checkpoints.storage.list_prices import CLOUDFLARE_R2 as R2
from checkpoints.storage.list_prices import GOOGLE_CLOUD_STORAGE as GCS
from checkpoints.storage.list_prices import StoragePrices
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.catalog.offers import Catalog, load_offers
from launcher.commands.dry_run import explanation, limits_of_plan
from launcher.errors import NothingFits
from launcher.planning.plan import DryRun, nearest, require_plan
from launcher.planning.planner import Planner
from launcher.planning.storage_costs import bucket_for
from launcher.planning.work_left import NOT_STARTED, run_progress
from launcher.policy.model import Place
from launcher.policy.observe import paid_usd
from launcher.policy.run_history import machines, place_data
from launcher.report.plan_tables import Extras, show_dry_run
from launcher.request import LaunchRequest, parse_deadline
from tests.support.plans import A100, A100_ONLY, RECIPE, plan


def test_a_budget_that_the_mean_would_keep_says_with_what_chance(snapshot: Catalog) -> None:
    request, result = plan(snapshot, deadline_h=24.0, budget_usd=160.0, **A100_ONLY)
    with pytest.raises(NothingFits) as caught:
        require_plan(result, request)
    best = nearest(result.plans, request)
    assert best.expected_cost_usd < 160 < best.cost_p95_usd
    assert f"the nearest, {best.name}, meets the deadline in 100% of runs" in caught.value.message
    assert f"the budget in {best.budget_probability:.0%} of runs" in caught.value.message
    assert f"95 % within ${best.cost_p95_usd:,.2f}" in caught.value.message
    assert result.reason == caught.value.message


@pytest.mark.parametrize(
    "limits",
    [{"deadline_h": 2.0}, {"budget_usd": 20.0}, {"deadline_h": 24.0, "budget_usd": 160.0}, {"deadline_h": 2.0, "budget_usd": 20.0}],
)  # fmt: skip
def test_the_limits_of_the_hint_are_kept(snapshot: Catalog, limits: dict[str, float]) -> None:
    request, result = plan(snapshot, **limits, **A100_ONLY)
    with pytest.raises(NothingFits) as caught:
        require_plan(result, request)
    first = caught.value.hint.split(" or ")[0]
    changed = dict(limits)
    if found := re.search(r"--budget (\d+)", first):
        changed["budget_usd"] = float(found[1])
    if found := re.search(r"--deadline ([\d.]+h)", first):
        changed["deadline_h"] = parse_deadline(found[1], datetime.now(UTC))
    assert changed != limits
    assert plan(snapshot, **changed, **A100_ONLY)[1].best is not None


def test_only_the_limits_that_were_given_are_named(snapshot: Catalog) -> None:
    _, dated = plan(snapshot, deadline_h=24.0, **A100_ONLY)
    _, limited = plan(snapshot, budget_usd=900.0, **A100_ONLY)
    assert "(the deadline)" in dated.reason
    assert "(the budget)" in limited.reason
    output = io.StringIO()
    show_dry_run(Console(width=200, file=output), limited, Extras(explained=True))
    assert "in budget" in output.getvalue()
    assert "of the recommended plan's cost: storage $" in output.getvalue()


def test_the_nearest_plan_is_explained_where_none_keeps_the_limits(snapshot: Catalog) -> None:
    request = LaunchRequest(recipe="x", budget_usd=20.0, **A100_ONLY)  # type: ignore[arg-type]
    planner = Planner(request, RECIPE, load_offers(snapshot, [A100], request.clouds), "test")
    result = planner.compare()
    assert result.best is None
    told = explanation(planner, result)
    assert told is not None
    assert told.plan == nearest(result.plans, request).name
    assert told.rules


@pytest.mark.parametrize(
    ("endpoint", "bucket"),
    [
        ("", S3),
        ("https://s3.us-east-1.amazonaws.com", S3),
        ("https://storage.googleapis.com", GCS),
        ("https://account.r2.cloudflarestorage.com", R2),
        ("http://localhost:9000", R2),
    ],
)
def test_an_endpoint_says_whose_prices_count(endpoint: str, bucket: StoragePrices) -> None:
    assert bucket_for("s3://b", {"AWS_ENDPOINT_URL": endpoint}) == bucket


def paused_run(now: datetime) -> ObjectStore:
    """40 h on a machine of $10/h, half of its steps, and a pause of 3,000 h."""
    store, clock = ObjectStore.memory(), FakeClock(now - timedelta(hours=3040))
    place = Place("gcp", "us-central1", "us-central1-a", "A100:8", False, 10.0)
    Diary(store, 0, clock).write(MachineUp(place=place_data(place), since=clock.now()))
    trainer = Diary(store, 1, clock)
    trainer.write(Training(step=1, total_steps=1000))
    clock.sleep(40 * 3600)
    trainer.write(Saved(step=500))
    trainer.write(Stopped(step=500, reason="by the user"))
    return store


def test_what_a_run_has_spent_is_what_the_strategy_will_book(snapshot: Catalog) -> None:
    """Else a launch near the budget is planned, and its job ends at the first look."""
    now = datetime(2026, 11, 28, tzinfo=UTC)
    store = paused_run(now)
    done = run_progress(store, now)
    assert (done.spent_usd, done.machine_h, done.pause_h) == pytest.approx((400.0, 40.0, 3000.0))

    def planned(budget_usd: float | None) -> tuple[LaunchRequest, DryRun]:
        request = LaunchRequest(
            recipe="notus-7b-dpo", gpus=(A100,), clouds=("gcp",), budget_usd=budget_usd, bucket="gs://b"
        )
        return request, Planner(request, RECIPE, load_offers(snapshot, [A100], ["gcp"]), "test", done=done).compare()

    request, free = planned(None)
    spells = machines(read_events(store))
    for one in free.plans:
        assert one.spent_usd == pytest.approx(paid_usd(spells, limits_of_plan(request, one, now), now))
        assert one.spent_usd > 405, "the pause alone is some dollars"
    assert free.best is not None
    assert free.spent_usd == free.best.spent_usd

    for name, budget_usd in [(one.name, done.spent_usd + one.cost_p95_usd + 0.01) for one in free.plans]:
        near = next(one for one in planned(budget_usd)[1].plans if one.name == name)
        assert not near.within_limits, "by the machines' price alone it would be"
        enough = next(one for one in planned(near.total_p95_usd + 0.01)[1].plans if one.name == name)
        assert enough.within_limits


def test_a_run_without_machines_has_spent_nothing() -> None:
    now = datetime(2026, 11, 28, tzinfo=UTC)
    store = ObjectStore.memory()
    assert run_progress(store, now) == NOT_STARTED
    assert NOT_STARTED.paid_usd(store_usd_per_h=1.0, keep_usd_per_h=1.0) == 0
