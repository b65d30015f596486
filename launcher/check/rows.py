"""What follows from a recipe's data: usable rows, steps, and plausible hours. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from launcher.catalog.gpu_nodes import Gpus, parse_gpus
from launcher.catalog.gpu_speeds import TIMED, relative_speed
from launcher.check.answers import Answer
from launcher.console import counted
from launcher.errors import RequestError
from launcher.findings import Finding
from trainer.config.global_batch import planned_steps
from trainer.config.model_shapes import shape_of
from trainer.config.recipe import Dataset, Recipe
from trainer.data.raw_rows import first_places
from trainer.data.row_count import RowCount

DATA, STEPS, HOURS = "data", "steps", "hours"
TABLE_PARAMETERS = 6.7e9
"""Parameters of the model in the table of `launcher.catalog.gpu_speeds`: MPT 7B."""
SLOWEST = 5.0
"""Notus 7B took 12 h on 8x A100, for which the table gives 2.8 h at 550 tokens per row (assumed): its optimizer was
offloaded, and sequences are padded. The plausible range is from the table's hours to this multiple of them."""
BEYOND = 1.25
"""A recipe's hours cause a warning if they are outside of the range by more than this factor."""
CHARACTERS_PER_TOKEN = 4.0
"""For English, if the model's tokenizer isn't available. Assumed."""


class Size(NamedTuple):
    """The size of all data sets together, limited by `dataset.rows`."""

    rows: int
    usable: int | None
    """None if it is only known on the machine: for sets on the Hub, and for the first rows after a shuffle."""
    characters: tuple[int, ...]
    """Characters of the prompt and its longer answer, for each usable row that was read here."""

    def trained(self, recipe: Recipe) -> int:
        """Rows that are trained: neither left out nor held out."""
        return (self.rows if self.usable is None else self.usable) - recipe.dataset.eval_rows


def size_of(dataset: Dataset, counts: Sequence[RowCount], on_hub: Sequence[Answer]) -> Size | None:
    """The size; None if the number of rows is unknown. `on_hub`: answers for the sets on the Hub."""
    unread = [answer.rows for answer in on_hub]
    if None in unread or not (counts or unread):
        return None
    whole = sum(count.rows for count in counts) + sum(rows for rows in unread if rows is not None)
    rows = min(whole, dataset.rows or whole)
    bad, before = 0, 0
    for count in counts:  # in the order in which the trainer concatenates them
        bad += sum(before + number < rows for number in count.unusable)
        before += count.rows
    chosen_by_chance = rows < whole and dataset.shuffle is not None and bad > 0
    usable = None if unread or chosen_by_chance else rows - bad
    return Size(rows, usable, tuple(length for count in counts for length in count.characters))


def about_rows(count: RowCount, *, alone: bool = True) -> list[Finding]:
    """Report on one data set that was read completely.

    Raises `RequestError` if none of its rows can be trained and it is the recipe's only set (`alone`).
    """
    reasons = [f"{group.rows:,} {group.reason} ({first_places(group)})" for group in count.left_out]
    if not count.usable:
        none = f"none of the {count.rows:,} rows of {count.name} can be trained: {reasons[0]}"
        if alone:
            raise RequestError(none, count.hint)
        return [Finding(DATA, "warning", none, count.hint)]
    lengths = np.percentile(count.characters, [50, 95, 100])
    figures = "median {:,.0f}, 95 % up to {:,.0f}, longest {:,.0f}".format(*lengths)
    long = f"characters of prompt and longer answer: {figures}"
    findings = [Finding(DATA, "ok", f"{count.name}: {count.usable:,} of {count.rows:,} rows can be trained; {long}")]
    if reasons:
        findings.append(Finding(DATA, "warning", f"{count.name}: left out: {'; '.join(reasons)}", count.hint))
    return findings


def about_held_out(recipe: Recipe, size: Size) -> list[Finding]:
    """Check the held-out rows. Raises `RequestError` if all rows would be held out."""
    dataset = recipe.dataset
    some = f"the first {dataset.rows:,} of {dataset.name}" if dataset.rows else dataset.name
    if size.usable == 0:
        raise RequestError(f"none of the {size.rows:,} rows of {some} can be trained", "see the reasons above")
    if size.trained(recipe) <= 0:
        left = "" if size.usable is None else "usable "
        raise RequestError(
            f"dataset.eval_rows is {dataset.eval_rows:,}, but {some} has only "
            f"{size.trained(recipe) + dataset.eval_rows:,} {left}rows",
            "hold out fewer rows",
        )
    if dataset.rows and dataset.rows > size.rows:
        return [Finding(DATA, "warning", f"dataset.rows is {dataset.rows:,}, but there are {size.rows:,}", "lower it")]
    return []


def about_steps(recipe: Recipe, size: Size, processes: int) -> Finding:
    """The number of optimizer steps."""
    training, trained = recipe.training, size.trained(recipe)
    steps = planned_steps(recipe, trained, processes)
    total = training.per_device_batch * training.accumulation * processes
    held = f", {recipe.dataset.eval_rows:,} held out" if recipe.dataset.eval_rows else ""
    about = "about " if size.usable is None else ""
    ends = "max_steps" if training.max_steps is not None else counted(training.epochs, "epoch")
    share = f"{total:,} per step on {counted(processes, 'rank')}"
    return Finding(STEPS, "ok", f"{about}{steps:,} steps: {ends} of {trained:,} rows, {share}{held}")


def about_hours(recipe: Recipe, size: Size, tokens_per_row: float, gpus: Gpus) -> Finding | None:
    """Are the recipe's hours plausible? None if the speed of these GPUs or the size of the model isn't known.

    `tokens_per_row`: tokens of a prompt and its longer answer, after truncation.
    """
    hours = plausible_hours(recipe, size, tokens_per_row, gpus)
    base = parse_gpus(str(recipe.hardware.gpus)) if recipe.hardware.gpus else None
    if hours is None or base is None:
        return None
    speed = relative_speed(gpus, base)
    if speed is None:
        return None
    planned, (least, most) = recipe.hardware.hours / speed, hours
    between = f"{least:,.1f} to {most:,.1f} h on {gpus}"
    if least / BEYOND <= planned <= most * BEYOND:
        return Finding(HOURS, "ok", f"{planned:,.1f} h in the recipe; these rows should take {between}")
    return Finding(
        HOURS,
        "warning",
        f"{planned:,.1f} h in the recipe, but these rows should take {between} (by published speeds of a 7B model)",
        "correct hardware.hours, or give --hours: the plan, its price and its deadline depend on it",
    )


def plausible_hours(recipe: Recipe, size: Size, tokens_per_row: float, gpus: Gpus) -> tuple[float, float] | None:
    """Hours at the table's speed, and at `1 / SLOWEST` of it.

    A pair is two sequences. In units of one forward pass, a trained token costs 4 (forward, recomputation, and two for
    backward), as in the table; a live reference model costs one more, and an evaluated token one per model.
    """
    shape = shape_of(recipe.model.name)
    if gpus.name not in TIMED or shape is None:
        return None
    per_second = TIMED[gpus.name] * gpus.count * TABLE_PARAMETERS / shape.parameters
    least = 2 * tokens_per_row * _row_passes(recipe, size, gpus.count) / per_second / 3600
    return least, least * SLOWEST


def _row_passes(recipe: Recipe, size: Size, processes: int) -> float:
    """Rows trained and evaluated over the whole run, in units of the table's training pass."""
    training = recipe.training
    steps = planned_steps(recipe, size.trained(recipe), processes)
    trained = steps * training.per_device_batch * training.accumulation * processes
    if recipe.dpo.reference == "live":
        work = trained * 5 / 4
    else:
        work = trained + (size.trained(recipe) + recipe.dataset.eval_rows) / 4
    times = training.epochs if training.eval_every_epoch else steps // (training.eval_every_steps or steps + 1)
    return work + times * recipe.dataset.eval_rows * 2 / 4
