"""`notus-launch check RECIPE`: check everything about a recipe that can be checked before paying for a machine."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.text import Text

from checkpoints.errors import NotusError
from checkpoints.util.command_line import console
from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.catalog.offers import find_catalog, load_offers
from launcher.check import hub, tracking
from launcher.check.answers import Answer, answers
from launcher.check.rows import DATA, STEPS, Size, about_held_out, about_hours, about_rows, about_steps, size_of
from launcher.check.tokens import about_lengths, sample_lengths
from launcher.console import echo
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.recipe import Recipe, load_recipe
from trainer.data.preference_pairs import check_local
from trainer.data.row_count import RowCount, Told, count_rows
from trainer.model.base_files import check_local_base

MODEL = "base model"
ERRORS = ("wrong", "missing")


class Where(NamedTuple):
    """Where the recipe will train."""

    gpus: Gpus | None = None
    """None = the recipe's own node."""
    processes: int | None = None
    """None = one per GPU, else the recipe's `cpu_processes`."""
    local: bool | None = None
    """On this machine, which may also have a Hub login on its disk. None = not known."""


class Checked(NamedTuple):
    """The results of a check, in the order of a recipe."""

    findings: tuple[Finding, ...]
    counts: tuple[RowCount, ...]
    size: Size | None
    """None if the number of rows isn't known here."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that would end the run on the first machine."""
        return tuple(finding for finding in self.findings if finding.state in ERRORS)


def check_recipe(recipe: Recipe, where: Where, on_progress: Told = lambda name, rows: None) -> Checked:
    """Read all data and query the Hub and W&B; takes seconds, with a timeout on the queries."""
    findings: list[Finding] = []
    counts: list[RowCount] = []
    with _collect_errors(findings, MODEL):
        check_local_base(recipe)
    with _collect_errors(findings, DATA):
        check_local(recipe.dataset)
    if not any(finding.what == DATA for finding in findings):  # a file with an invalid first row is not read further
        for source in recipe.dataset.sources:
            with _collect_errors(findings, DATA):
                if (count := count_rows(source, on_progress)) is not None:
                    counts.append(count)
                    findings += about_rows(count, alone=not recipe.dataset.also)
                elif not hub.is_there(source):
                    findings.append(Finding(DATA, "note", f"{source.name}: its rows are read on the machine"))
    findings += _local_folders(recipe, where)
    valid = not any(finding.what == DATA and finding.state in ERRORS for finding in findings)
    questions = [*hub.questions(recipe, local=bool(where.local), data=valid), *tracking.questions(recipe)]
    replies = answers(questions)
    findings += [answer.finding for answer in replies]
    size = (
        None
        if any(finding.state in ERRORS for finding in findings)
        else _size(
            recipe,
            counts,
            [answer for question, answer in zip(questions, replies, strict=True) if question.of_data],
        )
    )
    if size is not None:
        with _collect_errors(findings, DATA):
            findings += about_held_out(recipe, size)
            findings += _derived_findings(recipe, size, counts, where)
    return Checked(tuple(findings), tuple(counts), size)


def _local_folders(recipe: Recipe, where: Where) -> Iterator[Finding]:
    """Findings for folders on this machine, which a VM doesn't have: only a recipe's data files are sent."""
    if where.local:
        return
    named = [(MODEL, recipe.model.name, "model.name")]
    named += [(DATA, source.name, "dataset.name") for source in recipe.dataset.sources]
    for what, name, key in named:
        if Path(name).is_dir():
            yield Finding(
                what,
                "warning" if where.local is None else "wrong",
                f"{name} is a folder on this machine, which a rented machine doesn't have",
                f"run hf upload OWNER/NAME {name} and set {key} to that name, or train here: --cloud local",
            )


@contextlib.contextmanager
def _collect_errors(findings: list[Finding], what: str) -> Iterator[None]:
    """Turn an error into a finding, so that all of them are shown at once."""
    try:
        yield
    except NotusError as error:
        findings.append(Finding(what, "wrong", error.message, error.hint))


def _size(recipe: Recipe, counts: Sequence[RowCount], on_hub: Sequence[Answer]) -> Size | None:
    whole = len(counts) + len(on_hub) == len(recipe.dataset.sources)  # else a folder, or unreadable by pyarrow
    return size_of(recipe.dataset, counts, on_hub) if whole else None


def _derived_findings(recipe: Recipe, size: Size, counts: Sequence[RowCount], where: Where) -> Iterator[Finding]:
    gpus = where.gpus or (parse_gpus(recipe.hardware.gpus) if recipe.hardware.gpus else None)
    processes = where.processes or (gpus.count if gpus else recipe.hardware.cpu_processes)
    yield about_steps(recipe, size, processes)
    lengths = sample_lengths(recipe, counts)
    if lengths is None:
        return
    yield about_lengths(recipe, lengths)
    hours = about_hours(recipe, size, lengths.mean(recipe.dpo.max_length), gpus) if gpus and not where.local else None
    if hours is not None:
        yield hours


def show_check(recipe_name: str, nodes: Sequence[Gpus], output: str) -> int:
    """Run the command; returns 0, or 2 if something is wrong. Raises `NotusError` if no cloud offers `nodes`."""
    recipe = load_recipe(recipe_name)
    where = Where(gpus=parse_gpus(load_offers(find_catalog(), nodes)[0].gpus), local=False) if nodes else Where()
    with progress() as on_progress:
        checked = check_recipe(recipe, where, on_progress)
    if output == "json":
        sys.stdout.write(json.dumps(as_json(recipe, checked), indent=2) + "\n")
    else:
        from launcher.report.run_tables import findings_table

        console().print(findings_table(checked.findings))
    return RequestError.exit_code if checked.errors else 0


def as_json(recipe: Recipe, checked: Checked) -> dict[str, Any]:
    """The results for `--output json`."""
    size = checked.size
    return {
        "recipe": recipe.name,
        "ok": not checked.errors,
        "findings": [finding._asdict() for finding in checked.findings],
        "data": [
            {
                "name": count.name,
                "rows": count.rows,
                "usable": count.usable,
                "left_out": [found.model_dump(mode="json") for found in count.left_out],
            }
            for count in checked.counts
        ],
        "rows": None if size is None else size.rows,
        "usable": None if size is None else size.usable,
        "trained": None if size is None or checked.errors else size.trained(recipe),
        "held_out": recipe.dataset.eval_rows,
    }


def check_before_launch(recipe: Recipe, where: Where) -> None:
    """Check before a launch, printing problems and the results for the data.

    Raises `RequestError` after printing all errors.
    """
    with progress() as on_progress:
        checked = check_recipe(recipe, where, on_progress)
    for finding in checked.findings:
        if finding.state in ("warning", "unknown"):
            fix = f" ({finding.fix})" if finding.fix else ""
            echo(f"{finding.what}: {finding.detail}{fix}")
        elif finding.what in (DATA, hub.DATA, STEPS) and finding.state == "ok":
            echo(f"{finding.what}: {finding.detail}")
    if not checked.errors:
        return
    *others, last = checked.errors
    for finding in others:
        echo(f"{finding.what}: {finding.detail}; {finding.fix}")
    raise RequestError(last.detail, last.fix)


@contextlib.contextmanager
def progress() -> Iterator[Told]:
    """Show progress while a long file is read, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, rows: None
        return
    with console(stderr=True).status("checking the recipe") as status:
        yield lambda name, rows: status.update(Text(f"reading {name}: {rows:,} rows"))
