"""Counts a data file's rows on a laptop: every row is read as the trainer reads it, without torch.

Not counted here, because that needs the chat template and the tokenizer: rows that the template rejects or drops parts
of, answers without an end token, and truncation to `dpo.max_length`. `RowCount.sample` has rows to tokenize for an
estimate.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.run_log.event_kinds import LeftOutRows
from trainer.config.recipe import Source
from trainer.data.preference_pairs import find_columns, local_path, parquet_columns, recorded_types
from trainer.data.raw_rows import left_out, no_rows, no_text, rows_of_jsonl, why_broken
from trainer.data.trl_formats import Row, Turn, UnusableRow, read_row, without_nulls
from trainer.errors import DataError

SAMPLE_ROWS = 500
BATCH_ROWS = 2_000
REPORT_EVERY_ROWS = 2_000
PLAIN_TYPES = ("Value", "List", "Sequence", "LargeList")
"""Column types of `datasets` whose values are in the file as they are read. Its `Json` is text in the file, but an
object when read through `datasets`; unknown types are left to `datasets` to reject."""


class Texts(NamedTuple):
    """A row's text, without what a chat template adds."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def longest(self) -> int:
        """Characters of the prompt and the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class RowCount:
    """The rows of a local set, or of the share of it that the recipe uses."""

    name: str
    rows: int
    left_out: tuple[LeftOutRows, ...]
    hint: str
    """What to do about the most frequent reason."""
    characters: tuple[int, ...]
    """`Texts.longest` of each usable row, in order."""
    unusable: tuple[int, ...]
    """The numbers of the unusable rows, from 0."""
    sample: tuple[Texts, ...]
    """Up to `SAMPLE_ROWS` usable rows, drawn uniformly, always the same ones."""

    @property
    def usable(self) -> int:
        """Rows that are not left out."""
        return len(self.characters)


Told = Callable[[str, int], None]
"""Called periodically with the set's name and the number of rows read so far."""


def count_rows(source: Source, told: Told = lambda name, rows: None) -> RowCount | None:
    """Read a local or built-in set to its end.

    None for a set on the Hub or in a folder, and for a file that needs a package that isn't installed. Raises
    `DataError` for a file that can't be read, naming the line, and for one without rows.
    """
    path = local_path(source)
    if path is None:
        return None
    rows = rows_of_jsonl(path, source) if path.suffix != ".parquet" else _rows_of_parquet(path, source)
    if rows is None:
        return None
    reading = _Reading(source)
    for where, raw in rows:
        reading.add(where, raw)
        if reading.rows % REPORT_EVERY_ROWS == 0:
            told(source.name, reading.rows)
    if not reading.rows:
        raise no_rows(source)
    return reading.count()


@dataclass
class _Reading:
    """Collects a number per usable row, and the position and reason of each unusable one."""

    source: Source
    rows: int = 0
    unusable: list[tuple[int, str, str]] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)
    characters: list[tuple[int, int]] = field(default_factory=list)
    sample: list[tuple[int, Texts]] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 # nothing secret

    def add(self, where: str, raw: dict[str, Any]) -> None:
        number, self.rows = self.rows, self.rows + 1
        try:
            if broken := why_broken(raw):
                raise UnusableRow(broken)
            texts = texts_of(read_row(raw))
        except UnusableRow as error:
            self.unusable.append((number, where, str(error)))
            self.hints.setdefault(str(error), error.hint)
            return
        self.characters.append((number, texts.longest))
        place = len(self.characters) - 1 if len(self.sample) < SAMPLE_ROWS else self.chance.randrange(self.rows)
        if place < len(self.sample):  # Vitter's algorithm R
            self.sample[place] = (number, texts)
        elif len(self.sample) < SAMPLE_ROWS:
            self.sample.append((number, texts))

    def count(self) -> RowCount:
        used = self.source.share_of(self.rows)
        unusable = left_out((where, reason) for number, where, reason in self.unusable if number < used)
        return RowCount(
            name=self.source.name,
            rows=used,
            left_out=unusable,
            hint=self.hints[unusable[0].reason] if unusable else "",
            characters=tuple(length for number, length in self.characters if number < used),
            unusable=tuple(number for number, _, _ in self.unusable if number < used),
            sample=tuple(texts for number, texts in self.sample if number < used),
        )


def texts_of(row: Row) -> Texts:
    """The text of a row's prompt and answers."""
    return Texts(*(_words(part) for part in row[:3]))


def _words(part: str | list[Turn]) -> str:
    if isinstance(part, str):
        return part
    return "\n".join(str(turn.get("content", "")) + str(turn.get("tool_calls") or "") for turn in part)


def _rows_of_parquet(path: Path, source: Source) -> Iterator[tuple[str, dict[str, Any]]] | None:
    """The rows; None if pyarrow isn't installed, or a column's values differ from what is in the file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return None
    names = parquet_columns(path)
    try:
        file = parquet.ParquetFile(path)
        columns = find_columns(names, source)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"can't read {path} as parquet: {error}") from error
    recorded = recorded_types(path, file.schema_arrow.metadata or {})
    if not all(_as_it_is(recorded.get(name)) for name in columns.values()):
        return None
    return _parquet_rows(file, path, columns)


def _parquet_rows(file: Any, path: Path, columns: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow

    number = 0
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns.values())):
            for row in batch.to_pylist():
                number += 1
                values = {ours: without_nulls(row[theirs]) for ours, theirs in columns.items()}
                yield f"{path.name} row {number}", json.loads(json.dumps(values, default=no_text))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read behind row {number}: {error}", "rewrite the file") from error


def _as_it_is(recorded: Any) -> bool:
    """Are a column's values the same as in the file, by the type that `datasets` recorded?"""
    if isinstance(recorded, list):
        return all(map(_as_it_is, recorded))
    if isinstance(recorded, dict):
        return recorded.get("_type", "Value") in PLAIN_TYPES and all(map(_as_it_is, recorded.values()))
    return True
