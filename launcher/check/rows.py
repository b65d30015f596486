"""What comes of a recipe's data: rows that can be trained, steps, and hours that are plausible. Pure."""

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
"""Of the model whose speeds `launcher.catalog.gpu_speeds` has: MPT 7B."""
SLOWEST = 5.0
"""Notus 7B took 12 h on 8x A100, of which the table makes 2.8 h at 550 tokens a row (assumed): its optimizer was
offloaded, and sequences are padded. What is called plausible goes from the table's hours to so many times those."""
BEYOND = 1.25
"""A recipe's hours outside of the range by more than that are warned of."""
CHARACTERS_PER_TOKEN = 4.0
"""Of English, where the model's tokenizer isn't here. Assumed."""


class Size(NamedTuple):
    """Of all sets together, as far as `dataset.rows` takes them."""

    rows: int
    usable: int | None
    """None where that is known on the machine only: of sets on the Hub, and of the first rows after a shuffle."""
    characters: tuple[int, ...]
    """Of each usable row that was read here: the prompt and its longer answer."""

    def trained(self, recipe: Recipe) -> int:
        """Rows that are trained: neither left out nor held out."""
        return (self.rows if self.usable is None else self.usable) - recipe.dataset.eval_rows


def size_of(dataset: Dataset, counts: Sequence[RowCount], told: Sequence[Answer]) -> Size | None:
    """None if the number of rows is unknown. `told`: of the sets on the Hub."""
    unread = [answer.rows for answer in told]
    if None in unread or not (counts or unread):
        return None
    whole = sum(count.rows for count in counts) + sum(known for known in unread if known is not None)
    rows = min(whole, dataset.rows or whole)
    bad, before = 0, 0
    for count in counts:  # in the order in which the trainer puts them together
        bad += sum(before + number < rows for number in count.unusable)
        before += count.rows
    chosen_by_chance = rows < whole and dataset.shuffle is not None and bad > 0
    usable = None if unread or chosen_by_chance else rows - bad
    return Size(rows, usable, tuple(length for count in counts for length in count.characters))


def about_rows(count: RowCount, *, alone: bool = True) -> list[Finding]:
    """Report on one data set that was read to its end.

    Raises `RequestError` where none of its rows can be trained and it is the recipe's only set (`alone`).
    """
    reasons = [f"{found.rows:,} {found.reason} ({first_places(found)})" for found in count.left_out]
    if not count.usable:
        none = f"none of the {count.rows:,} rows of {count.name} can be trained: {reasons[0]}"
        if alone:
            raise RequestError(none, count.hint)
        return [Finding(DATA, "warning", none, count.hint)]
    lengths = np.percentile(count.characters, [50, 95, 100])
    figures = "median {:,.0f}, 95 % up to {:,.0f}, longest {:,.0f}".format(*lengths)
    long = f"characters of prompt and longer answer: {figures}"
    found = [Finding(DATA, "ok", f"{count.name}: {count.usable:,} of {count.rows:,} rows can be trained; {long}")]
    if reasons:
        found.append(Finding(DATA, "warning", f"{count.name}: left out: {'; '.join(reasons)}", count.hint))
    return found


def about_held_out(recipe: Recipe, size: Size) -> list[Finding]:
    """Raises `RequestError` where all rows would be held out."""
    dataset = recipe.dataset
    some = f"the first {dataset.rows:,} of {dataset.name}" if dataset.rows else dataset.name
    if size.usable == 0:
        raise RequestError(f"none of the {size.rows:,} rows of {some} can be trained", "the reasons are told before")
    if size.trained(recipe) <= 0:
        left = "" if size.usable is None else "usable "
        raise RequestError(
            f"dataset.eval_rows is {dataset.eval_rows:,}, and {some} has only "
            f"{size.trained(recipe) + dataset.eval_rows:,} {left}rows",
            "hold out fewer rows",
        )
    if dataset.rows and dataset.rows > size.rows:
        return [Finding(DATA, "warning", f"dataset.rows is {dataset.rows:,}, and there are {size.rows:,}", "lower it")]
    return []


def about_steps(recipe: Recipe, size: Size, processes: int) -> Finding:
    """How many optimizer steps that makes."""
    training, trained = recipe.training, size.trained(recipe)
    steps = planned_steps(recipe, trained, processes)
    total = training.per_device_batch * training.accumulation * processes
    held = f", {recipe.dataset.eval_rows:,} held out" if recipe.dataset.eval_rows else ""
    about = "about " if size.usable is None else ""
    ends = "max_steps" if training.max_steps is not None else counted(training.epochs, "epoch")
    share = f"{total:,} a step on {counted(processes, 'rank')}"
    return Finding(STEPS, "ok", f"{about}{steps:,} steps: {ends} of {trained:,} rows, {share}{held}")


def about_hours(recipe: Recipe, size: Size, tokens_per_row: float, gpus: Gpus) -> Finding | None:
    """Are the recipe's hours plausible? None where the speed of these GPUs or the size of the model isn't known.

    `tokens_per_row`: of a prompt and its longer answer, after the cut.
    """
    hours = plausible_hours(recipe, size, tokens_per_row, gpus)
    base = parse_gpus(str(recipe.hardware.gpus)) if recipe.hardware.gpus else None
    if hours is None or base is None:
        return None
    speed = relative_speed(gpus, base)
    if speed is None:
        return None
    told, (least, most) = recipe.hardware.hours / speed, hours
    between = f"{least:,.1f} to {most:,.1f} h on {gpus}"
    if least / BEYOND <= told <= most * BEYOND:
        return Finding(HOURS, "ok", f"{told:,.1f} h, as the recipe says; these rows should take {between}")
    return Finding(
        HOURS,
        "warning",
        f"the recipe says {told:,.1f} h, and these rows should take {between} (by published speeds of a 7B model)",
        "correct hardware.hours, or give --hours: the plan, its price and its deadline follow from them",
    )


def plausible_hours(recipe: Recipe, size: Size, tokens_per_row: float, gpus: Gpus) -> tuple[float, float] | None:
    """At the speed of the table, and at `1 / SLOWEST` of it.

    A pair is two sequences. In units of one forward pass a trained token costs 4 (forward, recomputed, twice that
    backward), as in the table; the live reference model one more, and an evaluated token one for each model.
    """
    shape = shape_of(recipe.model.name)
    if gpus.name not in TIMED or shape is None:
        return None
    per_second = TIMED[gpus.name] * gpus.count * TABLE_PARAMETERS / shape.parameters
    least = 2 * tokens_per_row * _row_passes(recipe, size, gpus.count) / per_second / 3600
    return least, least * SLOWEST


def _row_passes(recipe: Recipe, size: Size, processes: int) -> float:
    """Rows that are trained and evaluated over the whole run, in units of the table's training pass."""
    training = recipe.training
    steps = planned_steps(recipe, size.trained(recipe), processes)
    trained = steps * training.per_device_batch * training.accumulation * processes
    if recipe.dpo.reference == "live":
        work = trained * 5 / 4
    else:
        work = trained + (size.trained(recipe) + recipe.dataset.eval_rows) / 4
    times = training.epochs if training.eval_every_epoch else steps // (training.eval_every_steps or steps + 1)
    return work + times * recipe.dataset.eval_rows * 2 / 4
