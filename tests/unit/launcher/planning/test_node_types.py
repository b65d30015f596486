"""What a recipe can run on: whose hours are known, and what fits the GPUs and the host."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Catalog, Offer, load_offers
from launcher.errors import NothingFits, RequestError
from launcher.planning.plan import require_plan
from launcher.planning.planner import Planner
from launcher.report.plan_tables import Extras, show_dry_run
from launcher.request import LaunchRequest
from launcher.sky.render import task_config
from tests.support.plans import A100, A100_80, H100, RECIPE, node, plan


def test_hours_are_those_of_the_one_node_that_was_asked_for(snapshot: Catalog) -> None:
    _, one = plan(snapshot, hours=5.0, market="on-demand", gpus=(H100,))
    assert {p.work_h for p in one.plans} == {5.0}
    assert any(line.startswith("5 h of work (--hours, on H100:8)") for line in one.assumptions)
    _, several = plan(snapshot, hours=5.0, market="on-demand", gpus=(A100, H100))
    hours = {p.name: p.work_h for p in several.plans}
    assert (hours["Lambda on demand A100:8"], hours["Lambda on demand H100:8"]) == (
        5.0,
        pytest.approx(5 / 2.6474, rel=1e-3),
    )
    assert any(line.startswith("5 h of work (--hours, on A100:8)") for line in several.assumptions)


def test_hours_on_a_node_that_is_sold_with_pcie_only_are_hours_on_that() -> None:
    offers = [node("A100-80GB:8", pcie=True)]
    result = Planner(LaunchRequest(recipe="x", hours=5.0, gpus=(A100_80,)), RECIPE, offers, "test").compare()
    assert [p.work_h for p in result.plans] == [pytest.approx(5.0)]


def test_a_kind_of_unknown_speed_needs_hours() -> None:
    l4 = [node("GB999:8", host_gib=900.0)]
    with pytest.raises(RequestError, match="the speed of GB999:8 is not known") as caught:
        Planner(LaunchRequest(recipe="x", gpus=(Gpus("GB999", 8),)), RECIPE, l4, "test")
    assert "--gpus GB999:8 --hours H" in caught.value.hint
    told = LaunchRequest(recipe="x", gpus=(Gpus("gb999", 8),), hours=7.0)
    result = Planner(told, RECIPE, l4, "test").compare()
    assert [p.work_h for p in result.plans] == [7.0]
    assert "what it has is not known" in result.plans[0].memory
    both = LaunchRequest(recipe="x", gpus=(A100, Gpus("GB999", 8)))
    result = Planner(both, RECIPE, [*l4, node("A100:8", cloud="lambda")], "test").compare()
    assert [p.name for p in result.plans] == ["Lambda on demand A100:8"]
    assert "the hours on GB999:8 are not known: give --gpus GB999:8 --hours H" in result.assumptions


@pytest.mark.parametrize(
    ("kind", "why"), [("V100", "doesn't compute in bfloat16"), ("T4", "bfloat16"), ("MI300X", "not an NVIDIA GPU")]
)
def test_a_card_that_cannot_train_the_recipe_is_no_plan(kind: str, why: str) -> None:
    request = LaunchRequest(recipe="x", gpus=(Gpus(kind, 8),))
    result = Planner(request, RECIPE, [node(f"{kind}:8")], "test").compare()
    assert not result.plans
    assert why in result.offers[0].misfit
    with pytest.raises(NothingFits, match=f"the recipe fits no offer .{kind}:8: .*{why}"):
        require_plan(result, request)


def test_what_does_not_fit_is_no_plan_and_says_why(snapshot: Catalog) -> None:
    batch = RECIPE.training.model_copy(update={"per_device_batch": 36})
    big = RECIPE.model_copy(update={"training": batch})
    request = LaunchRequest(recipe="x", gpus=(A100, A100_80))
    result = Planner(request, big, load_offers(snapshot, request.gpus, ["lambda"]), "test").compare()
    assert {offer.gpus: offer.fits for offer in result.offers} == {"A100:8": False, "A100-80GB:8": True}
    assert [p.name for p in result.plans] == ["Lambda on demand A100-80GB:8"]
    assert any(line.startswith("A100:8 does not fit: ") for line in result.assumptions)
    assert "offloaded" in result.plans[0].memory


def test_fewer_gpus_than_the_recipes_make_another_batch() -> None:
    offer = Offer(
        cloud="gcp", region="r", zone="z", instance_type="i", gpus="A100:4", spot=True, price_usd_per_hour=5.0
    )  # fmt: skip
    result = Planner(LaunchRequest(recipe="x"), RECIPE, [offer], "test").compare()
    assert not result.plans
    assert any("made for 8 GPUs" in line for line in result.assumptions)


def test_a_host_too_small_for_the_state_is_no_plan(snapshot: Catalog) -> None:
    _, result = plan(snapshot, gpus=(H100,), clouds=("vast", "nebius"))
    small = next(offer for offer in result.offers if offer.cloud == "vast")
    assert (small.host_gib, small.fits) == (64.0, False)
    assert small.misfit == "86 GiB of the host's memory with no offload, and it has 64"  # 54 of state, 8 x 4
    assert not any("Vast" in p.name for p in result.plans)
    assert any(line.startswith("vast 8x-H100_SXM-32-65536 does not fit: 86 GiB") for line in result.assumptions)
    assert small.model_dump(mode="json")["misfit"] == small.misfit
    output = io.StringIO()
    show_dry_run(Console(width=200, file=output), result, Extras(explained=True))
    assert "does not fit: 86 GiB of the host's memory" in output.getvalue()


def test_an_unknown_host_is_not_refused_but_said() -> None:
    result = Planner(LaunchRequest(recipe="x"), RECIPE, [node("A100:8")], "test").compare()
    assert result.best is not None
    assert "180 GiB of the host's memory, and what it has is not known" in result.best.memory


def test_the_task_asks_for_memory_where_the_cloud_has_smaller_nodes() -> None:
    offers = [node("H100:8", host_gib=64.0, price=16.0), node("H100:8", host_gib=512.0, price=20.0)]
    best = Planner(LaunchRequest(recipe="x"), RECIPE, offers, "test").compare().best
    assert best is not None
    assert (best.price_usd_per_hour, best.ladder[0].host_gib) == (20.0, 86)
    entry = task_config(RECIPE, best.ladder, run="r", bucket="s3://b")["resources"]["ordered"][0]
    assert entry["memory"] == "86+"
    alone = Planner(LaunchRequest(recipe="x"), RECIPE, offers[1:], "test").compare().best
    assert alone is not None
    assert alone.ladder[0].host_gib is None
    silent = Planner(LaunchRequest(recipe="x"), RECIPE, [offers[0], node("H100:8", price=20.0)], "test").compare().best
    assert silent is not None
    assert silent.ladder[0].host_gib is None, "SkyPilot would not find a node whose memory its catalog lacks"
