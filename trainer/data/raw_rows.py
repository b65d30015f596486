"""The raw rows of a data file, with our column names and their positions. Needs no torch.

Both the trainer and `notus-launch check` on a laptop read a set with it, so that they count the same rows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.run_log.event_kinds import LeftOutRows
from trainer.config.recipe import Source
from trainer.data.preference_pairs import find_columns, numbered_jsonl
from trainer.data.trl_formats import FOR_TEMPLATE, PARTS, encodable
from trainer.errors import DataError

MOST_NUMBERS = 10
"""How many of the rows that were left out for one reason are listed."""


def rows_of_jsonl(path: Path, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Position and values of each row of a JSON-lines file. Raises `DataError` naming the line."""
    columns: dict[str, str] = {}
    for number, row in numbered_jsonl(path):
        columns = columns or find_columns(list(row), source)
        later = {name: name for name in (*PARTS, *FOR_TEMPLATE) if name in row}  # the first row may lack them
        named = {**later, **columns}.items()
        # A key that a row lacks is left out: an implicit prompt is one, an empty prompt isn't.
        yield f"{path.name}:{number}", {ours: row[theirs] for ours, theirs in named if theirs in row}


def no_rows(source: Source) -> DataError:
    """The error for an empty set."""
    return DataError(f"{source.name} has no rows", "remove it from the recipe, or give one with rows")


def as_text(raw: Mapping[str, Any]) -> tuple[str, str]:
    """A row as JSON, and why it is broken, or ''. Values that can't be encoded become null."""
    broken = why_broken(raw)
    kept = {name: value if encodable(value) else None for name, value in raw.items()} if broken else raw
    return json.dumps(kept, default=no_text, ensure_ascii=False), broken


def no_text(value: object) -> dict[str, str]:
    """Replaces values that JSON lacks (bytes, times, decimals) by neither text nor turns, so the row is left out.

    Otherwise its `repr` would be trained on as text.
    """
    return {"type": type(value).__name__}


def why_broken(raw: Mapping[str, Any]) -> str:
    """Why a row can't be encoded as text; '' if it can."""
    for name, value in raw.items():
        if not encodable(value):
            return f"{name} has half a character (a lone surrogate)"
    return ""


def left_out(rows: Iterable[tuple[str, str]]) -> tuple[LeftOutRows, ...]:
    """Group rows, each a position and a reason ('' for a good row), by reason, the most frequent first."""
    found: dict[str, list[str]] = defaultdict(list)
    for where, reason in rows:
        if reason:
            found[reason].append(where)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return tuple(
        LeftOutRows(reason=reason, rows=len(where), where=tuple(where[:MOST_NUMBERS])) for reason, where in ordered
    )


def first_places(found: LeftOutRows) -> str:
    """The first positions of the rows that were left out for one reason, as text."""
    return ", ".join(found.where) + (", ..." if found.rows > len(found.where) else "")
