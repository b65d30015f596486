"""`notus-launch check RECIPE`: everything about a recipe that can be known before a machine is paid for."""

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
from launcher.check.tokens import about_lengths, lengths_of, local_tokenizer
from launcher.console import echo
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.recipe import BUILTIN, Recipe, load_recipe
from trainer.data.preference_pairs import check_local
from trainer.data.row_count import RowCount, Told, count_rows
from trainer.model.base_files import check_local_base

MODEL = "base model"
ERRORS = ("wrong", "missing")


class Where(NamedTuple):
    """What will train."""

    gpus: Gpus | None = None
    """None = the recipe's own node."""
    processes: int | None = None
    """None = one for each GPU, else the recipe's `cpu_processes`."""
    local: bool | None = None
    """This machine, which also has a login of the Hub's on its disk. None = not known."""


class Checked(NamedTuple):
    """What was found, in the order of a recipe."""

    findings: tuple[Finding, ...]
    counts: tuple[RowCount, ...]
    size: Size | None
    """None where the number of rows isn't known here."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What would end the run on the first machine."""
        return tuple(finding for finding in self.findings if finding.state in ERRORS)


def check_recipe(recipe: Recipe, where: Where, told: Told = lambda name, rows: None) -> Checked:
    """Read the data to its end and ask the Hub and W&B; takes seconds, and never longer than their limit for those."""
    found: list[Finding] = []
    counts: list[RowCount] = []
    with _noted(found, MODEL):
        check_local_base(recipe)
    with _noted(found, DATA):
        check_local(recipe.dataset)
    if not any(finding.what == DATA for finding in found):  # a file whose first row is refused is read no further
        for source in recipe.dataset.sources:
            with _noted(found, DATA):
                if (count := count_rows(source, told)) is not None:
                    counts.append(count)
                    found += about_rows(count, alone=not recipe.dataset.also)
                elif not hub.is_there(source):
                    found.append(Finding(DATA, "note", f"{source.name}: its rows are read on the machine"))
    found += _left_behind(recipe, where)
    known = not any(finding.what == DATA and finding.state in ERRORS for finding in found)
    asked = [*hub.questions(recipe, local=bool(where.local), data=known), *tracking.questions(recipe)]
    heard = answers(asked)
    found += [answer.finding for answer in heard]
    size = (
        None
        if any(finding.state in ERRORS for finding in found)
        else _size(recipe, counts, [answer for question, answer in zip(asked, heard, strict=True) if question.of_data])
    )
    if size is not None:
        with _noted(found, DATA):
            found += about_held_out(recipe, size)
            found += _what_follows(recipe, size, counts, where)
    return Checked(tuple(found), tuple(counts), size)


def _left_behind(recipe: Recipe, where: Where) -> Iterator[Finding]:
    """Folders of this machine, which no VM has: of what a recipe names only its data files are sent."""
    if where.local:
        return
    named = [(MODEL, recipe.model.name, "model.name")]
    named += [(DATA, source.name, "dataset.name") for source in recipe.dataset.sources]
    for what, name, key in named:
        if Path(name).is_dir():
            yield Finding(
                what,
                "warning" if where.local is None else "wrong",
                f"{name} is a folder of this machine, and a rented one doesn't have it",
                f"hf upload OWNER/NAME {name}, and give {key} that name; or train here: --cloud local",
            )


@contextlib.contextmanager
def _noted(found: list[Finding], what: str) -> Iterator[None]:
    """An error is a finding: all of them are shown at once."""
    try:
        yield
    except NotusError as error:
        found.append(Finding(what, "wrong", error.message, error.hint))


def _size(recipe: Recipe, counts: Sequence[RowCount], told: Sequence[Answer]) -> Size | None:
    whole = len(counts) + len(told) == len(recipe.dataset.sources)  # a folder, or a file that pyarrow can't read
    return size_of(recipe.dataset, counts, told) if whole else None


def _what_follows(recipe: Recipe, size: Size, counts: Sequence[RowCount], where: Where) -> Iterator[Finding]:
    gpus = where.gpus or (parse_gpus(recipe.hardware.gpus) if recipe.hardware.gpus else None)
    processes = where.processes or (gpus.count if gpus else recipe.hardware.cpu_processes)
    yield about_steps(recipe, size, processes)
    sample = [texts for count in counts for texts in count.sample]
    if not sample or recipe.model.name.startswith(BUILTIN):  # whose tokens are bytes, or in no tokenizer.json
        return
    lengths = lengths_of(sample, local_tokenizer(recipe))
    yield about_lengths(recipe, lengths)
    hours = about_hours(recipe, size, lengths.mean(recipe.dpo.max_length), gpus) if gpus and not where.local else None
    if hours is not None:
        yield hours


def show_check(recipe_name: str, nodes: Sequence[Gpus], output: str) -> int:
    """The command: 0, or 2 where something is wrong. Raises `NotusError` for `nodes` that no cloud sells."""
    recipe = load_recipe(recipe_name)
    where = Where(gpus=parse_gpus(load_offers(find_catalog(), nodes)[0].gpus), local=False) if nodes else Where()
    with progress() as told:
        checked = check_recipe(recipe, where, told)
    if output == "json":
        sys.stdout.write(json.dumps(as_json(recipe, checked), indent=2) + "\n")
    else:
        from launcher.report.run_tables import findings_table

        console().print(findings_table(checked.findings))
    return RequestError.exit_code if checked.errors else 0


def as_json(recipe: Recipe, checked: Checked) -> dict[str, Any]:
    """For `--output json`."""
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
    """The same before a launch, which says what isn't as it should be, and what comes of the data.

    Raises `RequestError`, after all errors are told.
    """
    with progress() as told:
        checked = check_recipe(recipe, where, told)
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
    """A line of rich's while a long file is read; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda name, rows: None
        return
    with console(stderr=True).status("checking the recipe") as status:
        yield lambda name, rows: status.update(Text(f"reading {name}: {rows:,} rows"))
