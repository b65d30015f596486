"""The story of a launch: load, check, plan, run, report. Called by the command line."""

from __future__ import annotations

import json
import secrets
import sys
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import Console

from checkpoints.errors import NotusError
from checkpoints.events import Diary, read_events
from checkpoints.names import check_run_name
from checkpoints.run import open_run, read_metrics, register_run
from checkpoints.store import Store, probe
from launcher.errors import EXIT_STOPPED, RequestError, RunFailed
from launcher.local import Ended, LocalBackend, LocalRun
from launcher.offers import Offer, cheapest_by_kind, find_catalog, load_offers
from launcher.options import default_bucket, home
from launcher.plan import DryRun, dry_run, ladder, require_plan, wanted_gpus
from launcher.report.exact import compare_runs
from launcher.report.receipt import Receipt, make_receipt
from launcher.report.render import receipt_panel, show_dry_run
from launcher.request import CLOUDS, LOCAL, LaunchRequest, Market, parse_gpus
from launcher.sky.render import task_config, to_yaml
from launcher.watch import watcher
from trainer.main import default_processes, new_record
from trainer.pairs import check_local
from trainer.recipe import Recipe, load_recipe


def plan_only(request: LaunchRequest, output: str) -> int:
    """`--dry-run`: nothing is started, no credentials are needed."""
    recipe = load_recipe(request.recipe)
    result = plan_run(request, recipe)
    task = render_task(request, recipe, result)
    if output == "json":
        sys.stdout.write(json.dumps({**result.model_dump(mode="json"), "task": task}, indent=2) + "\n")
    else:
        show_dry_run(Console(), result, task)
    require_plan(result, request)
    return 0


def plan_run(request: LaunchRequest, recipe: Recipe) -> DryRun:
    """Compare the plans for a request."""
    catalog = find_catalog()
    clouds = [cloud for cloud in request.clouds if cloud != LOCAL] or list(CLOUDS)
    offers = load_offers(catalog, wanted_gpus(request, recipe), clouds)
    return dry_run(request, recipe, offers, catalog.source)


def render_task(request: LaunchRequest, recipe: Recipe, result: DryRun) -> str:
    """The SkyPilot task of the recommended plan; '' where there is none."""
    plan = next((plan for plan in result.plans if plan.name == result.recommended), None)
    if plan is None:
        return ""
    rungs = ladder(plan, [other for other in result.plans if other.within_limits])
    return to_yaml(task_config(recipe, rungs, run=request.name or recipe.name, bucket=request.bucket))


def launch_cloud(request: LaunchRequest) -> int:
    """Plan, show the task, and say how to submit it. Submitting by ourselves comes with the SkyPilot issue."""
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    result = plan_run(request, recipe)
    require_plan(result, request)
    sys.stdout.write(render_task(request, recipe, result))
    raise RunFailed(
        f"nothing was started: this version plans a cloud run ({result.recommended}) but does not submit it yet",
        "save the task above as task.yaml and run: sky jobs launch task.yaml --env NOTUS_BUCKET=... --secret HF_TOKEN",
    )


class LocalOptions(NamedTuple):
    """What only `--cloud local` knows."""

    preemptions: int
    compare: bool
    seed: int | None
    processes: int | None


def launch_local(request: LaunchRequest, options: LocalOptions, output: str) -> int:
    """Run on this machine; on request preempt it, and compare it with an uninterrupted twin."""
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    bucket = request.bucket or default_bucket()
    name = check_run_name(request.name or new_name(recipe))
    run = LocalRun(
        run=name,
        recipe=request.recipe,
        bucket=bucket,
        processes=options.processes or default_processes(recipe),
        preemptions=options.preemptions,
        seed=secrets.randbelow(10**6) if options.seed is None else options.seed,
    )
    store = open_run(bucket, name)
    probe(store)
    say(f"run {name} in {store.url}")
    if run.preemptions:
        say(f"it will be killed {run.preemptions} times (seed {run.seed})")
    ended = _run(run, recipe, store, label="run")
    if ended.outcome.kind != "finished":
        say(f"stopped at step {ended.outcome.step}")
        say(f"to go on: notus-launch --cloud local --recipe {request.recipe} --name {name} --bucket {bucket}")
        return EXIT_STOPPED
    if options.compare:
        _compare_with_twin(run, recipe, store)
    show_receipt(read_receipt(store, name, recipe), output)
    say(f"the model is in {store.url}/final")
    return 0


def _run(run: LocalRun, recipe: Recipe, store: Store, *, label: str) -> Ended:
    register_run(store, new_record(run.run, recipe))
    with watcher(label) as watching:
        return LocalBackend(run, store, home() / "scratch" / run.run, watching).run()


def _compare_with_twin(run: LocalRun, recipe: Recipe, store: Store) -> None:
    """Make the run that was never preempted, and note whether it is the same."""
    name = f"{run.run[:50].rstrip('-')}-uninterrupted"
    twin_store = open_run(run.bucket, name)
    say(f"now the same run without preemptions, to compare: {name}")
    twin = run.model_copy(update={"run": name, "preemptions": 0})
    ended = _run(twin, recipe, twin_store, label="twin")
    if ended.outcome.kind != "finished":
        say("the comparison was stopped; the run itself is complete")
        return
    result = compare_runs(store, twin_store)
    Diary(store, 0).write(
        "compared",
        equal=result.equal,
        steps=result.steps,
        tensors=result.tensors,
        differences=list(result.differences),
        twin=name,
    )


def read_receipt(store: Store, name: str, recipe: Recipe | None = None) -> Receipt:
    """The receipt of a run, from the bucket."""
    return make_receipt(name, read_events(store), read_metrics(store), priced_offers(recipe), datetime.now(UTC))


def priced_offers(recipe: Recipe | None) -> list[Offer]:
    """The cheapest trusted offers to price machine hours with: the recipe's node, or 8x A100."""
    node = recipe.hardware.gpus if recipe and recipe.hardware.gpus else None
    wanted = [parse_gpus(node)] if node else [parse_gpus("A100:8"), parse_gpus("A100-80GB:8")]
    try:
        return cheapest_by_kind(load_offers(find_catalog(), wanted))[:6]
    except NotusError:
        return []


def show_receipt(receipt: Receipt, output: str) -> None:
    """Print a receipt to stdout."""
    if output == "json":
        sys.stdout.write(receipt.model_dump_json(indent=2) + "\n")
    else:
        Console().print(receipt_panel(receipt))


def new_name(recipe: Recipe) -> str:
    """A fresh run name: recipe, day, four random letters."""
    return f"{recipe.name[:40]}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(2)}"


def say(text: str) -> None:
    """A line of the story, to stderr."""
    sys.stderr.write(f"notus-launch: {text}\n")


def choose_market(*, spot: bool, on_demand: bool, auto: bool) -> Market:
    """One of three flags; raises `RequestError` for two."""
    if spot + on_demand + auto > 1:
        raise RequestError("--spot, --on-demand and --auto exclude each other", "give one of them, or none for --auto")
    return "spot" if spot else "on-demand" if on_demand else "auto"


def refuse_local_options(preempt: int, compare: bool | None, seed: int | None, processes: int | None) -> None:
    """Options that only `--cloud local` knows; raises `RequestError`."""
    if preempt or not (compare is seed is processes is None):
        raise RequestError(
            "--preempt, --compare, --seed and --processes work with --cloud local only",
            "add --cloud local, or leave them out",
        )


def check_output(output: str) -> str:
    """`text` or `json`; raises `RequestError`."""
    if output not in ("text", "json"):
        raise RequestError(f"--output {output!r} is not known", "use text or json")
    return output
