"""`--dry-run`: plans, the recommendation and the task, shown. Starts nothing, needs no credentials and no network.

It imports nothing of the checkpoints or of SkyPilot: it has to answer within a second.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Console

from checkpoints.environment import user_home
from launcher.explain import Explanation, explain
from launcher.hazard import Learned
from launcher.kinds import wanted_gpus
from launcher.named_places import named_places
from launcher.offers import Offer, find_catalog, load_offers
from launcher.options import experience_path
from launcher.plan import DryRun, Plan, Rung, ladder, nearest, require_plan
from launcher.planner import Planner
from launcher.policy.limits import Limits
from launcher.report.plans import show_dry_run
from launcher.request import CLOUDS, LaunchRequest, check_cloud_bucket
from launcher.sky.controller import plugin_is_configured
from launcher.sky.render import NOTUS, SKYPILOTS_OWN, task_config, to_yaml
from trainer.recipe import Recipe, builtin_names, load_recipe

WITHOUT_PLUGIN = (
    "these figures are the NOTUS strategy's, which SkyPilot here does not have: the task says "
    f"{SKYPILOTS_OWN}, which knows neither deadline nor budget and never goes back to spot; to have ours: "
    "notus-launch doctor --fix"
)


def plan_only(request: LaunchRequest, output: str, *, explained: bool = False) -> int:
    """`--dry-run`: nothing is started, no credentials are needed."""
    if request.bucket is not None:
        check_cloud_bucket(request.bucket)
    recipe = load_recipe(request.recipe)
    planner = planner_for(request, recipe)
    result = planner.compare().model_copy(update={"warnings": price_warnings(request)})
    if strategy_here() != NOTUS:
        result = result.model_copy(update={"advice": (WITHOUT_PLUGIN, *result.advice)})
    task = shown_task(request, recipe, result)
    why = explanation(planner, result) if explained else None
    if output == "json":
        told = {**result.model_dump(mode="json"), "task": task}
        if why is not None:
            told["explanation"] = why.model_dump(mode="json")
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        show_dry_run(Console(), result, task, why)
    require_plan(result, request)
    return 0


def planner_for(request: LaunchRequest, recipe: Recipe) -> Planner:
    """A planner over the offers of a request."""
    catalog, clouds = find_catalog(), request.clouds or tuple(CLOUDS)
    offers = load_offers(catalog, wanted_gpus(request, recipe), clouds)
    return Planner(request, recipe, offers, catalog.described(clouds, datetime.now(UTC)), _learned(offers))


def price_warnings(request: LaunchRequest) -> tuple[str, ...]:
    """Which price lists of a request are too old to rely on."""
    return tuple(find_catalog().warnings(request.clouds or tuple(CLOUDS), datetime.now(UTC)))


def explanation(planner: Planner, result: DryRun) -> Explanation | None:
    """Of the recommended plan; where none keeps the limits, of the nearest; None without any plan."""
    if not result.plans:
        return None
    plan = result.best or nearest(result.plans, planner.request)
    hazard = planner.hazard_of(plan)
    chain = hazard.chain if hazard else None
    return explain(plan, chain, planner.request.deadline_h, planner.slack_costs(plan))


def shown_task(request: LaunchRequest, recipe: Recipe, result: DryRun) -> str:
    """The SkyPilot task of the recommended plan as `--dry-run` shows it; '' where there is no plan."""
    if result.best is None:
        return ""
    known = request.recipe in builtin_names()
    return to_yaml(
        task_config(
            recipe,
            rungs_of(request, result.best, result),
            run=request.name or recipe.name,
            bucket=request.bucket,
            recipe_argument=request.recipe if known else "recipe.yaml",
            strategy=strategy_here(),
            limits=limits_of_plan(request, result.best, datetime.now(UTC)),
        )
    )


def _learned(offers: Sequence[Offer] = (), without: str = "") -> Mapping[tuple[str, str], Learned]:
    """What the user's runs have met, if they have met anything: reading it needs the events' modules.

    `offers` are those of the plan, which may know AWS's zones by id only.
    """
    if not experience_path().exists():
        return {}
    from launcher.experience import learned

    return learned(without, names=find_catalog().zone_names, offers=offers)


def rungs_of(request: LaunchRequest, plan: Plan, result: DryRun) -> tuple[Rung, ...]:
    """The places to try, for this plan: none whose price looks wrong, unless the user trusts it."""
    within = [other for other in result.plans if other.within_limits]
    rungs = ladder(plan, within, mixed=len(request.gpus) > 1)
    return named_places(
        rungs, result.offers, trust_prices=request.trust_prices, strategy_checks=strategy_here() == NOTUS
    )


def limits_of_plan(request: LaunchRequest, plan: Plan, now: datetime) -> Limits:
    """What the run may take; the hours are those of the plan's own machines."""
    deadline = None if request.deadline_h is None else now + timedelta(hours=request.deadline_h)
    markets = {(rung.cloud, rung.gpus) for rung in plan.ladder if rung.spot}
    learned = _learned(without=f"{(request.bucket or '').rstrip('/')}/{request.name}")
    return Limits(
        plan.work_h,
        deadline=deadline,
        budget_usd=request.budget_usd,
        hazard_h=request.hazard_h,
        restore_usd=plan.restore_usd,
        bucket_cloud=plan.bucket_cloud or "",
        store_usd_per_h=plan.storage_usd / plan.expected_finish_h,
        trust_prices=request.trust_prices,
        met={kind: known.met for kind, known in learned.items() if kind in markets},
    )


def strategy_here() -> str:
    """Ours, where SkyPilot knows the plugin."""
    return NOTUS if plugin_is_configured(user_home(), os.environ) else SKYPILOTS_OWN
