"""Launch on this machine."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import NamedTuple

from checkpoints.run_log.event_kinds import Compared
from checkpoints.run_log.event_log import Diary, of_kind, read_events
from checkpoints.run_log.run_record import open_run, read_run_if_valid, register_run
from checkpoints.run_log.stop_request import withdraw
from checkpoints.storage.base import Store
from checkpoints.storage.probe import probe
from checkpoints.util.keys import check_run_name
from launcher.check.check import Where, check_before_launch
from launcher.cli_options import writable
from launcher.commands.receipts import keep_page, print_report, read_report
from launcher.console import echo
from launcher.errors import EXIT_STOPPED, RunFailed
from launcher.local.backend import LocalBackend, LocalRun, committed_step
from launcher.local.progress import watcher
from launcher.paths import default_folder, home
from launcher.report.bit_exact import compare_runs
from launcher.report.status import read_status
from launcher.request import LaunchRequest
from trainer.config.recipe import Recipe, load_recipe
from trainer.data.preference_pairs import check_local
from trainer.main import default_processes, new_record
from trainer.model.base_files import check_local_base
from trainer.runtime.attempt_dir import Outcome


class LocalOptions(NamedTuple):
    """Options of `--cloud local` only."""

    preemptions: int
    compare: bool
    seed: int | None
    processes: int | None


def launch_local(request: LaunchRequest, options: LocalOptions, output: str) -> int:
    """Run on this machine; optionally preempt the run, and compare it with an uninterrupted twin."""
    recipe = load_recipe(request.recipe)
    check_local(recipe.dataset)
    check_local_base(recipe)
    bucket = local_bucket(request.bucket)
    writable(home() / "scratch")
    name = check_run_name(new_name(recipe) if request.name is None else request.name)
    store = open_run(bucket, name)
    finished = _is_finished(store, name, recipe)
    if finished:
        _report_finished(name, options)
    if finished and not (options.compare and _has_no_comparison(store)):
        print_report(read_report(store, name, recipe), output)
        return 0
    run = LocalRun(
        run=name,
        recipe=request.recipe,
        bucket=bucket,
        processes=options.processes or default_processes(recipe),
        preemptions=options.preemptions,
        seed=secrets.randbelow(10**6) if options.seed is None else options.seed,
    )
    if not finished:
        check_before_launch(recipe, Where(processes=run.processes, local=True))
    probe(store)
    echo(f"run {name} in {store.url}")
    if run.preemptions and not finished:
        echo(f"it will be killed {run.preemptions} times (seed {run.seed})")
    outcome = None if finished else run_here(run, recipe, store, label="run")
    if outcome is not None and outcome.kind != "finished":
        saved = committed_step(store)
        echo(f"stopped; saved at step {saved}" if saved > 0 else "stopped before anything was saved")
        echo(
            f"to resume: notus-launch --cloud local --recipe {request.recipe} --name {name} --bucket {bucket} "
            f"--processes {run.processes}"
        )
        return EXIT_STOPPED if outcome.kind in ("preempted", "stopped") else RunFailed.exit_code
    if options.compare:
        compare_with_twin(run, recipe, store)
    report = read_report(store, name, recipe)
    print_report(report, output)
    keep_page(store, report)
    echo(f"the model is in {store.url}/final")
    return 0


def local_bucket(bucket: str | None) -> str:
    """The bucket of a run on this machine: the one that was named, or the default folder, which is created."""
    return f"file://{writable(default_folder())}" if bucket is None else bucket


def _is_finished(store: Store, name: str, recipe: Recipe) -> bool:
    """Is the run finished? A finished run is never trained again, because that would spoil its receipt.

    Raises `UserError` if it has another recipe.
    """
    if read_run_if_valid(store) is None or read_status(store, name, datetime.now(UTC)).state != "finished":
        return False
    register_run(store, new_record(name, recipe))
    return True


def _report_finished(name: str, options: LocalOptions) -> None:
    echo(f"run {name} is already finished")
    if options.preemptions:
        echo("--preempt has nothing left to preempt; use another --name to try it")


def _has_no_comparison(store: Store) -> bool:
    return not of_kind(read_events(store), Compared)


def run_here(run: LocalRun, recipe: Recipe, store: Store, *, label: str) -> Outcome:
    """Run it to its end on this machine, with its progress shown under `label`."""
    register_run(store, new_record(run.run, recipe))
    withdraw(store)  # an old stop request is not meant for this launch
    with watcher(label) as watching:
        return LocalBackend(run, store, home() / "scratch" / run.run, watching).run()


def compare_with_twin(run: LocalRun, recipe: Recipe, store: Store) -> None:
    """Make the run that was never preempted, and note whether it is the same."""
    name = f"{run.run[:50].rstrip('-')}-uninterrupted"
    twin_store = open_run(run.bucket, name)
    if not _is_finished(twin_store, name, recipe):
        echo(f"now training without preemptions, to compare: {name}")
        twin = run.model_copy(update={"run": name, "preemptions": 0})
        if run_here(twin, recipe, twin_store, label="twin").kind != "finished":
            echo("the comparison was stopped; the run itself is complete")
            return
    result = compare_runs(store, twin_store)
    Diary(store, 0).write(
        Compared(
            equal=result.equal,
            steps=result.steps,
            tensors=result.tensors,
            differences=result.differences,
            twin=name,
        )
    )


def new_name(recipe: Recipe) -> str:
    """A fresh run name: recipe, day, four random letters."""
    return f"{recipe.name[:40]}-{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(2)}"
