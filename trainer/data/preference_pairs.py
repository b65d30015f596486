"""Preference pairs without the training stack: columns, local files, truncation.

The launcher uses it to check a data file before any machine is paid for; `trainer.data.dataset` builds on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from trainer.config.recipe import BUILTIN, Dataset, Dpo, Source
from trainer.data.trl_formats import ANSWERS, FOR_TEMPLATE, PARTS
from trainer.errors import DataError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
OTHER_FILES = (".csv", ".tsv", ".txt", ".xlsx", ".arrow", ".gz", ".zst", ".zip", ".xml", ".yaml", ".yml", ".db")
"""Extensions of data files that aren't supported. A name on the Hub may have a dot too."""
COLUMN_SETS = (("prompt", "chosen", "rejected"), ("instruction", "chosen_response", "rejected_response"))


class PairIds(NamedTuple):
    """One pair as token ids."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def check_local(dataset: Dataset) -> None:
    """Check the columns of local and built-in sets by their first row, and the names of others. Raises `DataError`."""
    for source in dataset.sources:
        path = local_path(source)
        if path is None:
            check_hub_name(source)
            continue
        names = parquet_columns(path) if path.suffix == ".parquet" else list(next(iter(read_jsonl(path))))
        if names:
            find_columns(names, source)


def check_hub_name(source: Source) -> None:
    """Check that it can be a set on the Hub, or a folder that `datasets` reads. Raises `DataError`."""
    path = Path(source.name)
    if path.is_dir():
        return
    known = (".jsonl", ".json", ".parquet")
    if path.is_file() or path.suffix.lower() in OTHER_FILES:
        raise DataError(
            f"{source.name}: a data file ends in {', '.join(known)}",
            f"convert it: datasets.load_dataset(...).to_json('{path.name.partition('.')[0] or 'pairs'}.jsonl')",
        )
    if not HUB_NAME.fullmatch(source.name):
        raise DataError(
            f"{source.name!r} is neither a file or folder here nor a name on the Hub (OWNER/NAME)",
            "correct dataset.name",
        )


def find_columns(names: Sequence[str], source: Source) -> dict[str, str]:
    """Which columns are prompt, chosen and rejected, and which are for the chat template: the set's names by ours.

    There may be no prompt column: then it is what both answers begin with. Raises `DataError` naming what is missing.
    """
    wanted = source.columns.model_dump(exclude_none=True)
    if missing := [column for column in wanted.values() if column not in names]:
        raise DataError(
            f"{source.name} has no column {_listed(missing)}, which dataset.columns names; it has {', '.join(names)}",
            "correct dataset.columns",
        )
    known = next((columns for columns in COLUMN_SETS if all(column in names for column in columns)), ())
    found = {
        **{ours: ours for ours in (*PARTS, *FOR_TEMPLATE) if ours in names},
        **dict(zip(PARTS, known, strict=False)),
        **wanted,
    }
    if not {*ANSWERS} <= found.keys():
        best = max(COLUMN_SETS, key=lambda columns: sum(column in names for column in columns))
        missing = [column for column in best if column not in names and column not in wanted.values()]
        raise DataError(
            f"{source.name} has no column {_listed(missing)}; it has {', '.join(names)}",
            "set in dataset.columns which are prompt, chosen and rejected, or rename them",
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return " and no column ".join(map(repr, names))


def read_jsonl(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; raises `DataError` naming the line."""
    return (row for _, row in numbered_jsonl(path))


def numbered_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers; raises `DataError` naming the line."""
    count = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:  # also for a number of 5,000 digits, or 1,000 brackets
            problem = getattr(error, "msg", error)
            raise DataError(f"{path}:{number}: not JSON: {problem}", "write one JSON object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: not a JSON object", "write one JSON object per line")
        count += 1
        yield number, row
    if not count:
        raise DataError(f"{path} has no rows", "write one JSON object per line")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice Python would silently keep the last value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text with their numbers, from 1; raises `DataError` naming line and byte.

    Decoded line by line: decoding the whole file would report the position in its buffer.
    """
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    place = f"byte {start + error.start} of the file"
                    raise DataError(f"{path}:{number}: not UTF-8 text ({place})", "convert it to UTF-8") from error
                start += len(line)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def parquet_columns(path: Path) -> list[str]:
    """Column names of a parquet file; empty if pyarrow is missing (a laptop without the trainer's extra).

    Raises `DataError` if the file isn't parquet, has two columns of the same name, or has damaged metadata of
    `datasets` on its column types.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []
    try:
        schema = parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"can't read {path} as parquet: {error}") from error
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"{path} has two columns called {twice[0]!r}", "rename or drop one of them")
    recorded_types(path, schema.metadata or {})
    return list(schema.names)


def recorded_types(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The column types that `datasets` has recorded in a parquet file, by name; empty if it hasn't.

    Raises `DataError` if that metadata is damaged.
    """
    entry = metadata.get(b"huggingface")
    if entry is None:
        return {}
    try:
        features = json.loads(entry).get("info", {}).get("features") or {}
        if not isinstance(features, dict):
            raise TypeError(f"features are a {type(features).__name__}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: the metadata of `datasets` on its columns (the schema's 'huggingface') is damaged: {error}",
            "rewrite the file without it: pq.write_table(pq.read_table(FILE).replace_schema_metadata(None), FILE)",
        ) from error
    return features


def local_path(source: Source) -> Path | None:
    """The file behind a built-in or local set, None for a hub name; raises `DataError` for an unknown built-in."""
    if source.name.startswith(BUILTIN):
        name = source.name.removeprefix(BUILTIN)
        path = Path(str(files("trainer").joinpath("builtin", f"{name}.jsonl")))
        if not path.is_file():
            raise DataError(f"there is no built-in data set {name!r}", "built in: tiny-preferences")
        return path
    return Path(source.file_name) if source.file_name else None


def fit_pair(prompt: list[int], chosen: list[int], rejected: list[int], dpo: Dpo) -> PairIds:
    """Cut a pair to `max_length` as TRL did in 2023 (max_prompt_length with keep_end, since removed from TRL).

    Only if the prompt and the longer response don't fit together, the prompt is cut to its *last*
    `max_prompt_length` tokens; only if that is not enough, the responses are cut to their first
    `max_length - max_prompt_length` tokens. Both sides of a pair keep the same prompt.
    """
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > dpo.max_length:
        prompt = prompt[-dpo.max_prompt_length :]
    if len(prompt) + longer > dpo.max_length:
        room = dpo.max_length - dpo.max_prompt_length
        chosen, rejected = chosen[:room], rejected[:room]
    return PairIds(prompt, chosen, rejected)


class Cut(NamedTuple):
    """What was cut from a pair (0 or 1 each), or from many pairs (counts)."""

    cut_prompt: int
    """The prompt lost its start."""
    cut_answers: int
    """An answer lost its end."""
    same_answers: int
    """What is left of the two answers is the same, so there is nothing to learn."""
    cut_between: int
    """The prompt alone ends in tokens that it doesn't have before an answer; they are left out, as in TRL."""


def what_was_cut(whole: PairIds, fitted: PairIds, between: bool) -> Cut:
    """What was cut from one pair: 0 or 1 each."""
    return Cut(
        cut_prompt=int(len(fitted.prompt_ids) < len(whole.prompt_ids)),
        cut_answers=int(fitted[1:] != whole[1:]),
        same_answers=int(fitted.chosen_ids == fitted.rejected_ids),
        cut_between=int(between),
    )


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def fingerprint_rows(rows: Iterable[dict[str, Any]]) -> str:
    """xxh3-128 of the rows' contents in order."""
    digest = xxhash.xxh3_128()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()
