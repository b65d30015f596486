"""`notus-launch init`: three questions, or options, and a recipe with comments."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import typer

from checkpoints.errors import UserError
from checkpoints.util.command_line import console
from launcher.catalog.gpu_nodes import parse_gpus
from launcher.check.check import Checked, Where, check_recipe, progress
from launcher.check.rows import plausible_hours
from launcher.check.tokens import sample_lengths
from launcher.console import echo
from launcher.errors import RequestError
from launcher.new_recipe import Choices, Hours, Method, guess_columns, recipe_text
from launcher.report.run_tables import findings_table
from trainer.config.recipe import Recipe, Source, load_recipe
from trainer.data.preference_pairs import check_hub_name, parquet_columns, read_jsonl
from trainer.data.trl_formats import PARTS
from trainer.runtime.attempt_dir import replace_file

EVAL_ROWS = 200
EVAL_SHARE = 20
"""At most one row in this many is held out."""


class InitOptions(NamedTuple):
    """What was given on the command line; None = ask."""

    data: str | None
    model: str | None
    method: Method | None
    gpus: str
    columns: str | None
    force: bool


def init(file: Path, options: InitOptions) -> int:
    """Write the recipe, and print what a check of it finds; returns 0, or 2 if the check found an error."""
    _check_target(file, force=options.force)
    choices = _choices(file, options)
    recipe, checked = _check_draft(file, choices)
    hours = Hours(_hours(recipe, checked))
    replace_file(file, recipe_text(choices, hours).encode())
    console(stderr=True).print(findings_table([one for one in checked.findings if one.what != "hours"]))
    echo(f"wrote {file}")
    if hours.range is None:
        echo("hardware.hours is a placeholder: plans and prices rest on it, so replace it")
    for what, command in _next_commands(file):
        echo(f"{what}: {command}")
    return RequestError.exit_code if checked.errors else 0


def _check_draft(file: Path, choices: Choices) -> tuple[Recipe, Checked]:
    """Check the recipe, without its hours, in a file beside `file`: an interrupted check leaves nothing there."""
    draft = file.with_name(f".{file.stem}-draft.yaml")
    try:
        draft.write_text(recipe_text(choices, Hours(None)), encoding="utf-8")
        recipe = load_recipe(str(draft))
        with progress() as shown:
            return recipe, check_recipe(recipe, Where(gpus=parse_gpus(choices.gpus)), shown)
    finally:
        draft.unlink(missing_ok=True)


def _next_commands(file: Path) -> list[tuple[str, str]]:
    return [
        ("check it", f"notus-launch check {file}"),
        ("rehearse preemption", f"notus-launch drill --recipe {file}"),
        ("what it costs where", f"notus-launch --dry-run --recipe {file} --deadline 24h"),
    ]


def _check_target(file: Path, *, force: bool) -> None:
    """Raises `UserError` if the recipe can't be written there."""
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file} is not a recipe's name", f"name a file that ends in .yaml: {file}.yaml")
    if file.exists() and not force:
        raise UserError(f"{file} exists", "name another file, or overwrite it with --force")
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent}", "create it, or name another file")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{file.parent} can't be written", "name a file in another folder")


def _choices(file: Path, options: InitOptions) -> Choices:
    data = options.data or _ask("your preference pairs (a .jsonl or .parquet file, or a name on the Hub)", "--data")
    here = Source(name=data).file_name is not None
    if not here:
        check_hub_name(Source(name=data))
    rows, names = _look(Path(data)) if here else (None, [])
    columns = _parsed(options.columns, names) if options.columns else guess_columns(names) if names else {}
    if columns is None:
        raise UserError(
            f"{data} has the columns {', '.join(names)}, and it is not clear which are prompt, chosen and rejected",
            "name them: --columns prompt=QUESTION,chosen=BETTER,rejected=WORSE",
        )
    model = options.model or _ask("the model to train (a name on the Hub, or a folder)", "--model")
    method = options.method or _method(_ask("method: full (all weights) or lora (adapters)", "--method", "lora"))
    eval_rows = EVAL_ROWS if rows is None else min(EVAL_ROWS, rows // EVAL_SHARE)
    return Choices(
        name=re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "recipe",
        data=os.path.relpath(Path(data).expanduser().absolute(), file.parent.absolute()) if here else data,
        model=str(Path(model).expanduser().absolute()) if Path(model).expanduser().is_dir() else model,
        method=method,
        gpus=str(parse_gpus(options.gpus)),
        columns=columns,
        eval_rows=eval_rows,
    )


def _look(path: Path) -> tuple[int, list[str]]:
    """The number of rows of a data file, and its columns. Raises `DataError`."""
    if path.suffix == ".parquet":
        names = parquet_columns(path)
        return (_parquet_rows(path) if names else EVAL_ROWS * EVAL_SHARE), names
    rows = read_jsonl(path)
    first = next(iter(rows))
    return 1 + sum(1 for _ in rows), list(first)


def _parquet_rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _parsed(text: str, names: list[str]) -> dict[str, str]:
    """Parse `prompt=question,chosen=good,rejected=bad`. Raises `UserError`."""
    pairs = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if unknown := [ours for ours, theirs in pairs.items() if ours not in PARTS or not theirs]:
        raise UserError(
            f"--columns {text!r}: {unknown[0]!r} is not a column of ours with a name of yours",
            "for example: --columns prompt=question,chosen=good,rejected=bad",
        )
    if missing := [theirs for theirs in pairs.values() if names and theirs not in names]:
        raise UserError(f"--columns: there is no column {missing[0]!r}", f"there are: {', '.join(names)}")
    return pairs


def _method(text: str) -> Method:
    if text == "full":
        return "full"
    if text == "lora":
        return "lora"
    raise UserError(f"--method {text!r} is neither full nor lora", "full = all weights, lora = adapters")


def _ask(question: str, option: str, default: str | None = None) -> str:
    if not sys.stdin.isatty():
        if default is not None:
            return default
        raise UserError(f"{option} is missing, and stdin is not a terminal to ask on", f"add {option}")
    return str(typer.prompt(question, default=default, err=True)).strip()


def _hours(recipe: Recipe, checked: Checked) -> tuple[float, float] | None:
    lengths = sample_lengths(recipe, checked.counts)
    if lengths is None or checked.size is None or recipe.hardware.gpus is None:
        return None
    return plausible_hours(recipe, checked.size, lengths.mean(recipe.dpo.max_length), parse_gpus(recipe.hardware.gpus))
