"""`notus-launch recipes`: list, show or copy the built-in recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from checkpoints.errors import UserError
from checkpoints.util.command_line import console
from launcher.console import echo
from launcher.report.tables import plain_table
from trainer.config.recipe import builtin_names, find_recipe, load_recipe


def list_recipes(output: str) -> None:
    """Print all recipes, one per line."""
    recipes = [load_recipe(name) for name in builtin_names()]
    if output == "json":
        shown = [
            {
                "name": recipe.name,
                "description": recipe.description,
                "method": recipe.method,
                "model": recipe.model.name,
                "data": [source.name for source in recipe.dataset.sources],
                "gpus": recipe.hardware.gpus,
                "hours": recipe.hardware.hours,
            }
            for recipe in recipes
        ]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return
    table = plain_table()
    for column in ("recipe", "method", "node", "hours", "what it does"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        node = recipe.hardware.gpus or "CPU"
        table.add_row(recipe.name, recipe.method, node, f"{recipe.hardware.hours:g}", recipe.description)
    console().print(table)


def show_recipe(name: str) -> None:
    """Print the text of a recipe."""
    sys.stdout.write(_text(name))


def copy_recipe(name: str, file: Path | None) -> None:
    """Copy a recipe to `file`, or to NAME.yaml in the current folder. Raises `UserError` if that exists."""
    text, target = _text(name), file or Path(f"{name}.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"{target} is not a recipe's name", f"name a file that ends in .yaml: {target}.yaml")
    try:
        with target.open("x", encoding="utf-8") as copied:
            copied.write(text)
    except FileExistsError:
        raise UserError(f"{target} exists", "name another file") from None
    echo(f"wrote {target}; run it: notus-launch --recipe {target}")


def _text(name: str) -> str:
    if name not in builtin_names():
        find_recipe(name)  # names the nearest
        raise UserError(f"{name} is a file of yours", f"recipes by name: {', '.join(builtin_names())}")
    return find_recipe(name).read_text(encoding="utf-8")
