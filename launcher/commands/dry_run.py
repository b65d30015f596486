"""`--dry-run`: show the answer and the plans. Starts nothing, needs no credentials and no network.

It must answer within a second, so it imports no store and no SkyPilot. Only if a bucket and a run name are given does
it read the run's progress there.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from checkpoints.util.command_line import console
from checkpoints.util.environment import user_home
from launcher.catalog.offers import Offer, find_catalog, load_offers
from launcher.paths import experience_path
from launcher.planning.decision import Decision, decide, missing_accounts
from launcher.planning.explanation import Explanation, explain
from launcher.planning.named_places import named_places
from launcher.planning.node_types import wanted_gpus
from launcher.planning.plan import Candidate, DryRun, Plan, ladder, nearest, require_plan
from launcher.planning.planner import Planner
from launcher.planning.work_left import NOT_STARTED, RunProgress, run_progress
from launcher.policy.limits import Limits
from launcher.policy.spot.preemption_rates import Learned
from launcher.report.plan_tables import Extras, show_dry_run
from launcher.request import LaunchRequest, check_cloud_bucket, check_cloud_run_name, cloud_run_name
from launcher.sky.render import NOTUS, SKYPILOTS_OWN, task_config, to_yaml
from launcher.sky.setup.accounts import credentials_here
from launcher.sky.setup.controller import plugin_is_configured
from trainer.config.clouds import CLOUDS
from trainer.config.recipe import Recipe, builtin_names, load_recipe

BUCKET_S = 15.0
"""Timeout for reading the named run's progress."""

WITHOUT_PLUGIN = (
    "these figures assume the NOTUS strategy, which is not installed in SkyPilot here: the task uses "
    f"{SKYPILOTS_OWN}, which ignores deadline and budget and never returns to spot; to install ours, run "
    "notus-launch doctor --fix"
)


class Shown(NamedTuple):
    """What the user wants to see."""

    output: str
    explained: bool = False
    task_only: bool = False


def plan_only(request: LaunchRequest, shown: Shown) -> int:
    """Run `--dry-run`."""
    if request.bucket is not None:
        check_cloud_bucket(request.bucket)
    if request.name is not None:
        check_cloud_run_name(request.name)
    recipe = load_recipe(request.recipe)
    request = request.at(datetime.now(UTC))
    done, unread = _done(request)
    planner = planner_for(request, recipe, done)
    result = planner.compare().model_copy(update={"warnings": price_warnings(request)})
    if unread:
        result = result.model_copy(update={"advice": (unread, *result.advice)})
    if strategy_here() != NOTUS:
        result = result.model_copy(update={"advice": (WITHOUT_PLUGIN, *result.advice)})
    ready = [cloud for cloud, path in credentials_here(user_home(), os.environ).items() if path is not None]
    decision = decide(result, request, ready)
    why = explanation(planner, result) if shown.explained else None
    if shown.output == "json":
        data = {**result.model_dump(mode="json"), "task": shown_task(request, recipe, result)}
        data["decision"] = decision.model_dump(mode="json") if decision is not None else None
        if why is not None:
            data["explanation"] = why.model_dump(mode="json")
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    elif shown.task_only:
        sys.stdout.write(shown_task(request, recipe, result))
    else:
        commands = next_commands(request, decision, sys.argv[1:]) if decision is not None else ()
        show_dry_run(console(), result, Extras(decision, why, shown.explained, commands))
    require_plan(result, request)
    return 0


def next_commands(request: LaunchRequest, decision: Decision, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """What to run next, each with its purpose: what is missing first, then the launch with the same options."""
    commands = []
    if missing := missing_accounts(decision.accounts):
        commands.append((f"set up {', '.join(missing)}", "notus-launch doctor"))
    kept = [argument for argument in arguments if argument not in ("--dry-run", "--explain", "--show-task")]
    bucket = [] if request.bucket is not None else ["--bucket", "s3://YOUR-BUCKET/PREFIX"]
    commands.append(("launch", shlex.join(["notus-launch", *kept, *bucket])))
    return commands


def _done(request: LaunchRequest) -> tuple[RunProgress, str]:
    """The named run's progress, and a note if its bucket can't be read, for example without an account.

    Reads in a thread, because a store retries for minutes: good for a run, too long for a dry run.
    """
    if request.bucket is None or request.name is None:
        return NOT_STARTED, ""
    progress: list[RunProgress] = []
    failed: list[str] = []

    def read(bucket: str, name: str) -> None:
        from checkpoints.errors import NotusError
        from checkpoints.run_log.run_record import open_run

        try:
            progress.append(run_progress(open_run(bucket, name), datetime.now(UTC)))
        except NotusError as error:
            failed.append(error.message)

    reading = threading.Thread(target=read, args=(request.bucket, request.name), daemon=True)
    reading.start()
    reading.join(BUCKET_S)
    if progress:
        return progress[0], ""
    why = failed[0] if failed else f"no answer within {BUCKET_S:.0f} s"
    return NOT_STARTED, f"planned as a new run because {request.bucket} can't be read: {why}"


def planner_for(request: LaunchRequest, recipe: Recipe, done: RunProgress = NOT_STARTED) -> Planner:
    """A planner for the offers of a request; `done` is the run's progress so far."""
    catalog, clouds = find_catalog(), request.clouds or tuple(CLOUDS)
    offers = load_offers(catalog, wanted_gpus(request, recipe), clouds)
    return Planner(request, recipe, offers, catalog.described(clouds, datetime.now(UTC)), _learned(offers), done)


def price_warnings(request: LaunchRequest) -> tuple[str, ...]:
    """Warnings about price lists that are too old."""
    return tuple(find_catalog().warnings(request.clouds or tuple(CLOUDS), datetime.now(UTC)))


def explanation(planner: Planner, result: DryRun) -> Explanation | None:
    """Explain the recommended plan, else the nearest to the limits; None without any plan."""
    if not result.plans:
        return None
    plan = result.best or nearest(result.plans, planner.request)
    hazard = planner.hazard_of(plan)
    chain = hazard.chain if hazard else None
    return explain(plan, chain, planner.request.deadline_h, planner.slack_costs(plan))


def shown_task(request: LaunchRequest, recipe: Recipe, result: DryRun) -> str:
    """The SkyPilot task of the recommended plan as `--dry-run` shows it; '' if there is none."""
    if result.best is None:
        return ""
    known = request.recipe in builtin_names()
    return to_yaml(
        task_config(
            recipe,
            candidates_of(request, result.best, result),
            run=request.name or cloud_run_name(recipe.name),
            bucket=request.bucket,
            environment=os.environ if request.bucket is not None else None,
            recipe_argument=request.recipe if known else "recipe.yaml",
            strategy=strategy_here(),
            limits=limits_of_plan(request, result.best, datetime.now(UTC)),
        )
    )


def _learned(offers: Sequence[Offer] = (), without: str = "") -> Mapping[tuple[str, str], Learned]:
    """Statistics of the user's runs; imported only if there are any, because that needs the event modules.

    `offers` are those of the plan, whose AWS zones may be ids.
    """
    if not experience_path().exists():
        return {}
    from launcher.planning.user_history import learned

    return learned(without, names=find_catalog().zone_names, offers=offers)


def candidates_of(request: LaunchRequest, plan: Plan, result: DryRun) -> tuple[Candidate, ...]:
    """The candidates for this plan, without places whose price looks wrong unless the user trusts it."""
    within = [other for other in result.plans if other.within_limits]
    candidates = ladder(plan, within, mixed=len(request.gpus) > 1)
    return named_places(
        candidates, result.offers, trust_prices=request.trust_prices, strategy_checks=strategy_here() == NOTUS
    )


def limits_of_plan(request: LaunchRequest, plan: Plan, now: datetime) -> Limits:
    """The limits of a run launched at `now`; the hours are those of the whole run on the plan's own machines."""
    markets = {(candidate.cloud, candidate.gpus) for candidate in plan.ladder if candidate.spot}
    learned = _learned(without=f"{(request.bucket or '').rstrip('/')}/{request.name}")
    return Limits(
        plan.whole_work_h,
        deadline=request.deadline_from(now),
        budget_usd=request.budget_usd,
        hazard_h=request.hazard_h,
        restore_usd=plan.restore_usd,
        keep_usd_per_h=plan.keep_usd_per_h,
        bucket_cloud=plan.bucket_cloud or "",
        store_usd_per_h=plan.store_usd_per_h,
        save_h=plan.upload_h,
        save_every_h=plan.save_every_h,
        trust_prices=request.trust_prices,
        spell_ends={kind: history.spell_ends for kind, history in learned.items() if kind in markets},
    )


def strategy_here() -> str:
    """The NOTUS strategy if the plugin is configured in SkyPilot, else SkyPilot's own."""
    return NOTUS if plugin_is_configured(user_home(), os.environ) else SKYPILOTS_OWN
