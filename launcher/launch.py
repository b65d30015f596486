"""The story of a launch: load, check, plan, run, report. Called by the command line."""

from __future__ import annotations

import json
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from checkpoints.errors import NotusError
from checkpoints.events import Diary, read_events
from checkpoints.names import check_run_name
from checkpoints.run import open_run, read_metrics, register_run
from checkpoints.store import Store, probe
from launcher.errors import EXIT_STOPPED, RequestError, RunFailed
from launcher.local import LocalBackend, LocalRun, committed_step
from launcher.offers import Offer, cheapest_by_kind, find_catalog, load_offers
from launcher.options import default_bucket, home
from launcher.plan import DryRun, dry_run, ladder, require_plan, wanted_gpus
from launcher.report.exact import compare_runs
from launcher.report.receipt import Receipt, make_receipt
from launcher.report.render import receipt_panel, show_dry_run
from launcher.request import CLOUDS, LaunchRequest, parse_gpus
from launcher.sky.render import needed_secrets, task_config, to_yaml
from launcher.watch import watcher
from trainer.main import default_processes, new_record
from trainer.pairs import check_local
from trainer.recipe import Recipe, builtin_names, load_recipe
from trainer.scratch import Outcome


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
    offers = load_offers(catalog, wanted_gpus(request, recipe), request.clouds or tuple(CLOUDS))
    return dry_run(request, recipe, offers, catalog.source)


def render_task(request: LaunchRequest, recipe: Recipe, result: DryRun) -> str:
    """The SkyPilot task of the recommended plan; '' where there is none."""
    plan = next((plan for plan in result.plans if plan.name == result.recommended), None)
    if plan is None:
        return ""
    rungs = ladder(plan, [other for other in result.plans if other.within_limits])
    return to_yaml(
        task_config(
            recipe,
            rungs,
            run=request.name or recipe.name,
            bucket=request.bucket,
            recipe_argument=recipe_on_vm(request.recipe, Path.cwd()),
        )
    )


def recipe_on_vm(name_or_path: str, workdir: Path) -> str:
    """How the VM finds the recipe: by its name, or by its path in the working tree that SkyPilot sends.

    Raises `RequestError` for a file outside of it.
    """
    if name_or_path in builtin_names():
        return name_or_path
    path, workdir = Path(name_or_path).resolve(), workdir.resolve()
    if not path.is_relative_to(workdir):
        raise RequestError(
            f"the recipe {name_or_path} is outside of {workdir}, so it would not be on the machine",
            "SkyPilot sends the current folder: put the recipe (and its data file) below it, or change into its folder",
        )
    return str(path.relative_to(workdir))


def launch_cloud(request: LaunchRequest, output: str) -> int:
    """Plan, show the task, and say how to submit it. Submitting by ourselves comes with the SkyPilot issue."""
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    result = plan_run(request, recipe)
    require_plan(result, request)
    task = render_task(request, recipe, result)
    sys.stdout.write(json.dumps({"started": False, "task": task}) + "\n" if output == "json" else task)
    raise RunFailed(
        f"nothing was started: this version plans a cloud run ({result.recommended}) but does not submit it yet",
        "save the task above as task.yaml and run: sky jobs launch task.yaml "
        + ("" if request.bucket else "--env NOTUS_BUCKET=... ")
        + " ".join(f"--secret {name}" for name in needed_secrets(recipe, request.bucket)),
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
    outcome = _run(run, recipe, store, label="run")
    if outcome.kind != "finished":
        saved = committed_step(store)
        say(f"stopped; saved at step {saved}" if saved > 0 else "stopped before anything was saved")
        say(
            f"to go on: notus-launch --cloud local --recipe {request.recipe} --name {name} --bucket {bucket} "
            f"--processes {run.processes}"
        )
        return EXIT_STOPPED if outcome.kind == "preempted" else RunFailed.exit_code
    if options.compare:
        _compare_with_twin(run, recipe, store)
    show_receipt(read_receipt(store, name, recipe), output)
    say(f"the model is in {store.url}/final")
    return 0


def _run(run: LocalRun, recipe: Recipe, store: Store, *, label: str) -> Outcome:
    register_run(store, new_record(run.run, recipe))
    with watcher(label) as watching:
        return LocalBackend(run, store, home() / "scratch" / run.run, watching).run()


def _compare_with_twin(run: LocalRun, recipe: Recipe, store: Store) -> None:
    """Make the run that was never preempted, and note whether it is the same."""
    name = f"{run.run[:50].rstrip('-')}-uninterrupted"
    twin_store = open_run(run.bucket, name)
    say(f"now the same run without preemptions, to compare: {name}")
    twin = run.model_copy(update={"run": name, "preemptions": 0})
    outcome = _run(twin, recipe, twin_store, label="twin")
    if outcome.kind != "finished":
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
