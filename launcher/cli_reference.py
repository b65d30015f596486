"""Generates the reference pages in `docs/reference/` from the models and the command lines, so that they stay current.

`python -m launcher.cli_reference FOLDER` writes them; a test compares.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from checkpoints.cli import app as ckpt_app
from launcher.cli import app as launch_app
from trainer.config.recipe import Recipe
from trainer.curation.cli import app as data_app
from trainer.main import app as train_app

_WRITTEN = "<!-- written by `make docs`; edit the code instead -->\n\n"


def pages() -> dict[str, str]:
    """File name -> Markdown."""
    return {"recipe.md": _recipe_page(), "cli.md": _cli_page()}


def _recipe_page() -> str:
    lines = [f"{_WRITTEN}# Recipe keys\n", "A recipe is a YAML file. Unknown keys are errors.\n"]
    for path, model in _sections(Recipe, ""):
        lines.append(f"## {f'`{path}:`' if path else 'Top level'}\n")
        if model.__doc__ and path:
            lines.append(f"{_first_paragraph(model.__doc__)}\n")
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name, field) for name, field in model.model_fields.items()]
        lines.append("")
    return "\n".join(lines)


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        if nested := _nested(field):
            yield from _sections(nested, f"{path}.{name}".lstrip("."))


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _row(name: str, field: FieldInfo) -> str:
    nested = _nested(field)
    default = "required" if field.is_required() else "" if nested else f"`{_yaml(field.default)}`"
    kind = f"section `{name}:`" if nested else _type_name(field.annotation)
    return f"| `{name}` | {kind} | {default} | {(field.description or '').replace('|', chr(92) + '|')} |"


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(annotation))
    if origin is tuple:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if hasattr(annotation, "__metadata__"):
        return _type_name(annotation.__origin__)
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(annotation, str(annotation))


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else repr(value) if value == "" else str(value)


def _cli_page() -> str:
    parts = [f"{_WRITTEN}# Command lines\n"]
    commands = [
        ("notus-launch", launch_app),
        ("notus-train", train_app),
        (
            "notus-train export",
            import_module("trainer.export.export_command").app,
        ),  # by name: its functions import torch
        ("notus-ckpt", ckpt_app),
        ("notus-data", data_app),
    ]
    for name, app in commands:
        for subcommand in ("", *getattr(typer.main.get_command(app), "commands", {})):
            words = [word for word in (subcommand,) if word]
            parts.append(f"## {' '.join([name, *words])}\n\n```\n{_help(app, name, words)}\n```\n")
    return "\n".join(parts)


def _help(app: Any, name: str, words: list[str]) -> str:
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "HOME": os.environ.get("HOME", "")}
    result = CliRunner().invoke(app, [*words, "--help"], prog_name=name, env=environment)
    return re.sub(r"[ \t]+$", "", result.output, flags=re.MULTILINE).strip()


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().split("\n\n")[0].split())


def main() -> None:
    """Write the pages to the given folder."""
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
