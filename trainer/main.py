"""`notus-train RECIPE`: one attempt of a run on this machine. The launcher starts it, here or on a VM."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import stamina
import typer

from checkpoints.commit.head import PATIENCE_S, read_head
from checkpoints.errors import AccessDenied, NotusError, RunHeld, StoreError, UserError
from checkpoints.run_log.causes import AttemptOutcome
from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.run_record import RunRecord, open_run, register_run
from checkpoints.storage.backend import SHORT
from checkpoints.storage.base import Store
from checkpoints.storage.probe import probe
from checkpoints.util import owner_locks
from checkpoints.util.command_line import run_app, show_error
from trainer.checkpointing.save_interval import hours_to_preemption
from trainer.config.bounds import MAX_PROCESSES
from trainer.config.fingerprint import saved_fingerprint
from trainer.config.global_batch import batch_of_run
from trainer.config.recipe import Recipe, load_recipe
from trainer.config.run_pins import read_pins
from trainer.data.input_hash import inputs_digest
from trainer.data.preference_pairs import check_local
from trainer.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_STOPPED, HardwareError, MachineFault, TrainingFailed
from trainer.model.base_files import check_local_base
from trainer.runtime import stale_attempts
from trainer.runtime.attempt_dir import Outcome, Scratch
from trainer.supervisor.dead_mans_switch import AUTODOWN_S, CLUSTER, SPENT, machine_age_s, machine_budget
from trainer.supervisor.failed_start import conducted, note_failed_start
from trainer.supervisor.restart_policy import of_this_machine
from trainer.supervisor.single_node import check_nodes_here
from trainer.supervisor.supervisor import PREDECESSOR_GONE, Supervisor, gpus_here

logger = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

FLAGS = frozenset({"--debug", "--wait", "--no-wait", "--help"})
"""The options without a value."""
BUCKET_PATIENCE_S = 900.0
"""A VM has just been paid for, and exit code 1 would end the whole job, but the bucket may be back in a minute."""

EXIT_CODES = {
    "finished": 0,
    "preempted": EXIT_PREEMPTED,
    "stopped": EXIT_STOPPED,
    "failed": EXIT_FAILED,
    "fenced": EXIT_FAILED,
    "user_error": 2,
}


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or the path of a .yaml file.")],
    run: Annotated[str, typer.Option(help="Name of the run in the bucket.", envvar="NOTUS_RUN")],
    bucket: Annotated[str, typer.Option(help=f"{SHORT} or a folder: where the run is kept.", envvar="NOTUS_BUCKET")],
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_PROCESSES, help="Ranks. Default: one per GPU, else the recipe's cpu_processes."),
    ] = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for this attempt. Default: a temporary one.")] = None,
    predecessor_gone: Annotated[
        str,
        typer.Option(
            help="Id of a writer that is known to be dead: don't wait for its lease.", envvar=PREDECESSOR_GONE
        ),
    ] = "",
    wait: Annotated[
        bool,
        typer.Option(
            help="Check for up to 2 min whether another attempt still holds the run. --no-wait: refuse if unsure."
        ),
    ] = True,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # run_app reads it
) -> None:
    """Run one attempt: resume from the newest good checkpoint or start fresh, and train until done or stopped.

    Exit codes: 0 done; 1 gave up after three failed starts in a row; 2 usage or configuration error; 75 start again on
    another machine (preempted with its state saved, or failed); 76 stopped by `notus-launch stop` or a limit, with its
    state saved: don't restart automatically.

    `notus-train export --help`: fetch the finished model, merge its adapters, push it to the Hub.
    """
    with _folder(scratch) as folder:
        outcome = _judged_attempt(recipe, run, bucket, processes, folder, predecessor_gone, wait=wait)
        folder.write_result(outcome)
        _report(outcome, folder)
        raise typer.Exit(exit_code(outcome))


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Scratch]:
    """The attempt's folder; a temporary one is removed at the end, except the log of a failed attempt."""
    if given is not None:
        owner_locks.hold(given)
        yield Scratch(given)
        return
    temporary = Path(tempfile.gettempdir())
    stale_attempts.sweep(temporary, "notus-attempt-*")
    folder = Scratch(Path(tempfile.mkdtemp(prefix="notus-attempt-")))
    owner_locks.hold(folder.folder)
    try:
        yield folder
    finally:
        result = folder.read_result()
        stale_attempts.release(folder.folder, keep_texts=result is None or result.kind in ("failed", "user_error"))


def _judged_attempt(
    recipe: str, run: str, bucket: str, processes: int | None, folder: Scratch, gone: str, *, wait: bool
) -> Outcome:
    """Run the attempt; returns how it ended, also for an error before its claim.

    Raises errors that end the run; without `wait`, all errors.
    """
    try:
        return _attempt(recipe, run, bucket, processes, folder, gone, wait_s=PATIENCE_S if wait else 0.0)
    except NotusError as error:
        outcome = _refused(error)
        folder.write_result(outcome)
        if not wait:  # the launcher on this machine decides
            raise
        return judge_refusal(error, outcome, recipe, run, bucket)
    except Exception as error:  # a full disk, a missing file of a library: presumably this machine's fault
        if not wait:
            raise
        logger.exception("the attempt could not start")
        failure = TrainingFailed(f"{type(error).__name__}: {error}")
        return judge_refusal(failure, _refused(failure), recipe, run, bucket)


def _refused(error: NotusError) -> Outcome:
    kind: AttemptOutcome = "user_error" if isinstance(error, UserError) else "failed"
    return Outcome(kind=kind, message=error.message, hint=error.hint)


def exit_code(outcome: Outcome) -> int:
    """0 done, 75 try another machine, 2 user error, 1 gave up (`trainer.supervisor.restart_policy`)."""
    if outcome.kind == "failed" and not outcome.gave_up:
        return EXIT_PREEMPTED
    return EXIT_CODES[outcome.kind]


def judge_refusal(error: NotusError, refused: Outcome, recipe: str, run: str, bucket: str) -> Outcome:
    """What an error before the claim means for the run. Raises it if it would occur on every machine."""
    inputs, rented = _inputs(recipe), CLUSTER in os.environ
    try:
        store = open_run(bucket, run)
        again = of_this_machine(error, read_events(store), inputs, rented=rented)
        if again:
            again = note_failed_start(store, error.message, "notus-train")
            return refused.model_copy(update={"kind": "failed", "gave_up": not again})
    except Exception as trouble:  # a bucket's client may raise anything, and the first error is the one to show
        logger.info("could not read or write the diary in %s: %s", bucket, trouble)
        held = rented and isinstance(error, RunHeld)
        if held or not isinstance(error, UserError) or isinstance(error, MachineFault) or _worked_before(error):
            return refused.model_copy(update={"kind": "failed", "gave_up": not conducted(os.environ)})
    raise error


def _inputs(recipe: str) -> str:
    """The hash of the inputs; '' for a recipe that can't be read, which no attempt got past."""
    try:
        return inputs_digest(load_recipe(recipe))
    except NotusError:
        return ""


def _worked_before(error: BaseException) -> bool:
    """Did refused credentials work on earlier machines of this run? Then they may work again. Needs no bucket."""
    try:
        spent_usd = float(os.environ.get(SPENT) or 0)
    except ValueError:
        return False
    return isinstance(error, AccessDenied) and conducted(os.environ) and spent_usd > 0


def _may_pass(error: Exception) -> bool:
    """Is the error worth waiting for on a paid machine, without exceeding the budget?"""
    budget = machine_budget(os.environ)
    if budget is not None and budget.reached(machine_age_s(), AUTODOWN_S):
        return False
    return isinstance(error, StoreError) or _worked_before(error)


def _attempt(
    recipe: str, run: str, bucket: str, processes: int | None, scratch: Scratch, gone: str, *, wait_s: float
) -> Outcome:
    """Check everything that can be checked without torch, then run the attempt."""
    check_nodes_here(os.environ)
    settings = load_recipe(recipe)
    count = processes or default_processes(settings)
    check_local(settings.dataset)
    check_local_base(settings)
    check_installed(settings)
    hours_to_preemption(os.environ)  # rejects what the ranks would only notice at their first save
    store = open_run(bucket, run)
    prepare = stamina.retry(on=_may_pass, attempts=None if wait_s else 1, timeout=BUCKET_PATIENCE_S, wait_max=30)
    prepare(_prepare)(store, run, settings, count)
    supervisor = Supervisor(settings, recipe, run=run, bucket=bucket, store=store, scratch=scratch, processes=count)
    return supervisor.run(gone=gone, wait_s=wait_s)


def check_installed(recipe: Recipe) -> None:
    """Raises `UserError` if the recipe needs an optional package that isn't installed."""
    if recipe.needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "lora.quantize: nf4 needs bitsandbytes, which is not installed",
            "pip install -c constraints.txt '.[qlora]'",
        )


def _prepare(store: Store, run: str, recipe: Recipe, processes: int) -> None:
    """Prepare the bucket before the claim. Safe to repeat."""
    probe(store)
    register_run(store, new_record(run, recipe))
    saved = saved_fingerprint(store, read_head(store)) or read_pins(store)
    batch_of_run(saved, recipe, processes)  # rejects a number of processes that can't resume the run


def default_processes(recipe: Recipe) -> int:
    """One rank per GPU; without GPUs, what the recipe sets.

    Raises `HardwareError` for a recipe that needs GPUs. On a rented machine that is a `MachineFault`, because it was
    rented with GPUs.
    """
    gpus = gpus_here()
    if gpus:
        return gpus
    if recipe.hardware.gpus is not None:
        kind = MachineFault if CLUSTER in os.environ else HardwareError
        raise kind(
            f"recipe {recipe.name!r} needs {recipe.hardware.gpus}, and this machine has no GPU",
            "launch it in a cloud: notus-launch --cloud lambda; to try the machinery here: --recipe tiny-dpo",
        )
    return recipe.hardware.cpu_processes


def new_record(run: str, recipe: Recipe) -> RunRecord:
    """run.json of a new run."""
    return RunRecord(
        name=run,
        created_at=datetime.now(UTC),
        recipe_name=recipe.name,
        recipe=recipe.model_dump(mode="json"),
        identity=recipe.identity,
        versions={"notus-launch": version("notus-launch")},
    )


def _report(outcome: Outcome, scratch: Scratch) -> None:
    line = {
        "finished": f"done at step {outcome.step}",
        "preempted": f"stopped at step {outcome.step}; the state is saved, launch again to resume",
        "stopped": f"stopped at step {outcome.step} on request ({outcome.message}); launch again to resume",
    }.get(outcome.kind, f"{outcome.kind.replace('_', ' ')}: {outcome.message}")
    sys.stderr.write(f"notus-train: {line}\n")
    if outcome.hint:
        sys.stderr.write(f"  {outcome.hint}\n")
    if outcome.kind == "failed":
        sys.stderr.write(f"  the log of this attempt: {scratch.log}\n")


def main() -> None:
    """Entry point."""
    if "RANK" in os.environ:
        raise SystemExit(_refuse("notus-train starts torchrun itself", "run `notus-train RECIPE ...` without torchrun"))
    if sys.argv[1:2] == ["export"]:  # the only subcommand; a recipe of that name would have a suffix
        del sys.argv[1]
        runpy.run_module("trainer.export.export_command", run_name="__main__")  # by name: not imported without torch
        return
    if _first_word(sys.argv[1:]) == "export":
        raise SystemExit(_refuse("options come after `export`", "write notus-train export RUN ... --bucket ..."))
    run_app(app, "notus-train")


def _first_word(words: Sequence[str]) -> str | None:
    """The first argument that is neither an option nor an option's value."""
    value_follows = False
    for word in words:
        if not word.startswith("-") and not value_follows:
            return word
        value_follows = word.startswith("--") and "=" not in word and word not in FLAGS
    return None


def _refuse(message: str, hint: str) -> int:
    error = UserError(message, hint)
    show_error(error, "notus-train")
    return error.exit_code


if __name__ == "__main__":
    main()
