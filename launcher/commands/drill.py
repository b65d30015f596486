"""`notus-launch drill`: rehearse preemption of a recipe on this machine, before money is spent on it.

The recipe is made small (`trainer.config.rehearsal`), its model too (`trainer.model.miniature`). It is trained in its
own bucket twice, killed at random steps and undisturbed, and both runs are compared bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.event_kinds import DataPrepared, Preempted
from checkpoints.run_log.event_log import of_kind
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from checkpoints.storage.probe import probe
from checkpoints.util.command_line import console
from checkpoints.util.interpreter import environment, module
from launcher.cli_options import writable
from launcher.commands.launch_local import compare_with_twin, local_bucket, run_here
from launcher.commands.receipts import read_report
from launcher.console import counted, echo
from launcher.errors import EXIT_STOPPED, RunFailed
from launcher.local.backend import LocalRun
from launcher.paths import home
from launcher.report.drill_result import Drill, drill_panel
from trainer.config.recipe import Recipe, load_recipe
from trainer.config.rehearsal import rehearsal_of
from trainer.data.preference_pairs import check_local
from trainer.main import default_processes
from trainer.model.base_files import check_local_base
from trainer.supervisor.supervisor import gpus_here

MODEL_S = 1800.0
"""Timeout for imports and for fetching the model's tokenizer and configuration from the Hub."""


class DrillOptions(NamedTuple):
    """The user's options."""

    kills: int
    seed: int | None
    processes: int | None
    keep: bool


def drill(recipe_name: str, bucket: str | None, options: DrillOptions, output: str) -> int:
    """Run the drill and print its result; returns the exit code, 1 if the resumed run differs."""
    recipe = load_recipe(recipe_name)
    check_local(recipe.dataset)
    check_local_base(recipe)
    url = local_bucket(bucket)
    run = f"drill-{recipe.name[:30].rstrip('-')}-{secrets.token_hex(3)}"
    folder = writable(home() / "drills" / run)
    store, twin = open_run(url, run), open_run(url, f"{run}-uninterrupted")
    probe(store)
    try:
        small, about = _small_recipe(recipe, folder)
        local = LocalRun(
            run=run,
            recipe=str(folder / "recipe.yaml"),
            bucket=url,
            processes=options.processes or default_processes(small),
            preemptions=options.kills,
            seed=secrets.randbelow(10**6) if options.seed is None else options.seed,
        )
        echo(f"drill of {recipe.name}: {about}; {counted(options.kills, 'kill')}, seed {local.seed}, in {store.url}")
        outcome = run_here(local, small, store, label="drill")
        if outcome.kind == "finished":
            compare_with_twin(local, small, store)
        result = _result(recipe, about, local, store, keep=options.keep)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if result is None:
        echo(f"the drill was stopped; its runs are in {url}: {run}, {run}-uninterrupted")
        return EXIT_STOPPED
    if not result.kept:
        _remove(store, twin)
    if output == "json":
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        console().print(drill_panel(result))
    return 0 if result.passed else RunFailed.exit_code


def _small_recipe(recipe: Recipe, folder: Path) -> tuple[Recipe, str]:
    """Write the small recipe and its model to `folder`; returns it, and a description of the model."""
    model = folder / "model"
    echo(f"making a small model like {recipe.model.name}")
    made = _make_model(recipe, model)
    small = rehearsal_of(recipe, model)
    with (folder / "recipe.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(small.model_dump(mode="json", exclude_none=True), file)
    return small, f"a {made['type']} with {made['parameters']:,} random weights"


def _make_model(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Run in a separate process, because the launcher doesn't import torch. Raises `UserError`, or `RunFailed`."""
    command = [*module("trainer.model.miniature"), recipe.model.name, recipe.model.revision or "", str(folder)]
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=MODEL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"the small model took more than {MODEL_S / 60:.0f} min", "try again") from error
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(done.stdout.splitlines()[-1])
    if done.returncode == 0 and "type" in answer:
        return answer
    kind = UserError if done.returncode == UserError.exit_code else RunFailed
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    raise kind(
        answer.get("error") or f"the small model could not be made: {last[0]}", answer.get("hint", "see --debug")
    )


def _result(recipe: Recipe, about: str, local: LocalRun, store: Store, *, keep: bool) -> Drill | None:
    """The result; None if the drill was stopped before the runs were compared."""
    report = read_report(store, local.run)
    events, receipt = report.events, report.receipt
    if receipt.bit_exact is None:
        return None
    rows = sum(payload.train for _, payload in of_kind(events, DataPrepared)[-1:])
    killed = tuple(payload.step for _, payload in of_kind(events, Preempted))
    resumed = [attempt.from_step for attempt in receipt.attempts[1:]]
    compared = receipt.compared
    return Drill(
        recipe=recipe.name,
        passed=receipt.bit_exact,
        run=local.run,
        bucket=local.bucket,
        kept=keep or not receipt.bit_exact,
        killed_at_steps=killed,
        differences=tuple(compared.get("differences", ())),
        shown=(
            f"killed without warning at {_steps(killed)}, resumed from {_steps(resumed)}",
            f"{compared.get('steps', 0)} steps' losses of every rank and {compared.get('tensors', 0)} tensors of the "
            "final state, compared with an undisturbed run",
            f"{_method(recipe)}, on {counted(local.processes, 'rank')}",
            f"{counted(rows, 'row')} of its data, with its chat template and columns",
            f"{counted(receipt.saves, 'save')} to its bucket, and the way back",
        ),
        not_shown=(
            f"its own weights and size: the model was {about}",
            "its own batch sizes, lengths and number of steps; the rows after the first ones",
            "a cloud: no machine was rented, no preemption notice was sent, and nothing was installed",
            *(("GPUs: everything was computed on the CPU",) if not gpus_here() else ()),
            "a kill before the first step or during the export",
        ),
        receipt=receipt,
    )


def _method(recipe: Recipe) -> str:
    parallel = "DeepSpeed ZeRO-3" if recipe.zero else "DDP"
    method = "LoRA" if recipe.lora else "all weights"
    training = recipe.training
    return f"{method} under {parallel}, {recipe.dpo.loss} loss, {training.optimizer}, {training.schedule} schedule"


def _steps(steps: Sequence[int]) -> str:
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(map(str, steps)) if steps else "no step"


def _remove(*stores: Store) -> None:
    """Delete the drill's own runs, and report what can't be deleted."""
    for store in stores:
        try:
            for entry in store.list(""):
                store.delete(entry.key)
        except NotusError as error:
            echo(f"{store.url} could not be deleted: {error.message}")
