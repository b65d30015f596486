"""The recipe's data set as token ids: loaded, checked, formatted, truncated, split."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import datasets
import pyarrow
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from checkpoints.run_log.event_kinds import DataPrepared, LeftOutRows
from trainer.config.recipe import Dpo, Recipe, Source
from trainer.data.chat_rendering import end_tokens, render_row
from trainer.data.preference_pairs import (
    Cut,
    PairIds,
    common_prefix,
    find_columns,
    fingerprint_rows,
    fit_pair,
    local_path,
    parquet_columns,
    what_was_cut,
)
from trainer.data.raw_rows import as_text, first_places, left_out, no_rows, rows_of_jsonl
from trainer.data.trl_formats import Row, UnusableRow, read_row, without_nulls
from trainer.errors import DataError
from trainer.hub.load_errors import translated_errors
from trainer.runtime.startup_phases import Tally

logger = logging.getLogger(__name__)

PARALLEL_FROM_ROWS = 2000
"""With fewer rows, starting worker processes takes longer than tokenizing."""
BATCH_ROWS = 10_000
"""Rows held as Python objects at once."""


SAME = "after the cut both answers are the same (dpo.max_length)"
"""A reason to leave a row out."""


class Pairs(NamedTuple):
    """Tokenized preference pairs and their fingerprint."""

    train: datasets.Dataset
    evaluation: datasets.Dataset | None
    fingerprint: str
    """xxh3 of the raw rows in order, to notice a data set that changed between two attempts."""
    rows: int = 0
    """How many were read. 0 if the pairs come from a cache."""
    left_out: tuple[LeftOutRows, ...] = ()

    def as_event(self) -> DataPrepared:
        """The event for the diary."""
        return DataPrepared(
            rows=self.rows,
            train=len(self.train),
            evaluation=len(self.evaluation or ()),
            left_out=self.left_out,
        )


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tally: Tally | None = None) -> Pairs:
    """Load the recipe's data set and turn it into token ids. `tally` counts the finished rows.

    Raises:
        DataError: the set can't be found or read, lacks a column, or has no usable row.
    """
    dataset = recipe.dataset
    rows = datasets.concatenate_datasets([_share(source) for source in dataset.sources])
    if dataset.shuffle is not None:
        rows = rows.shuffle(seed=dataset.shuffle)
    if dataset.rows:
        rows = rows.select(range(min(dataset.rows, len(rows))))
    fingerprint = fingerprint_rows(map(json.loads, rows["row"]))
    tokenized, unusable = _tokenize(rows, recipe, tokenizer, tally)
    pairs = Pairs(tokenized, None, fingerprint, len(rows), unusable)
    if not dataset.eval_rows:
        return pairs
    if dataset.eval_rows >= len(tokenized):
        raise DataError(
            f"dataset.eval_rows is {dataset.eval_rows}, but {dataset.name} has only {len(tokenized)} usable rows",
            "hold out fewer rows",
        )
    split = tokenized.train_test_split(test_size=dataset.eval_rows, seed=dataset.seed)
    return pairs._replace(train=split["train"], evaluation=split["test"])


def _tokenize(
    rows: datasets.Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, tally: Tally | None
) -> tuple[datasets.Dataset, tuple[LeftOutRows, ...]]:
    """Token ids of each usable row, and which rows are unusable; logs how many were cut."""
    name = recipe.dataset.name
    tokenized = rows.map(
        _tokenize_raw,
        fn_kwargs={
            "tokenizer": tokenizer,
            "dpo": recipe.dpo,
            "system": recipe.dataset.system,
            "ends": end_tokens(tokenizer) if recipe.dataset.end_tokens == "required" else None,
            "tally": tally,
        },
        remove_columns=rows.column_names,
        num_proc=recipe.dataset.workers if len(rows) > PARALLEL_FROM_ROWS else None,
        desc="tokenizing",
    )
    places = rows["where"]
    unusable = left_out(zip(places, tokenized["reason"], strict=True))
    for found in unusable:
        where = first_places(found)
        logger.warning("%s: left out %d of %d rows: %s (%s)", name, found.rows, len(rows), found.reason, where)
    if sum(found.rows for found in unusable) == len(rows):
        worst = unusable[0]
        hint = next(row["hint"] for row in tokenized if row["reason"] == worst.reason)
        where = first_places(worst)
        raise DataError(f"none of the {len(rows)} rows of {name} can be trained: {worst.reason} ({where})", hint)
    usable = [where for where, reason in zip(places, tokenized["reason"], strict=True) if not reason]
    if unusable:
        tokenized = tokenized.filter(lambda reason: not reason, input_columns="reason", desc="checking rows")
    same = [SAME if cut else "" for cut in tokenized["same_answers"]]
    cuts = Cut(*(sum(tokenized[field]) for field in Cut._fields))
    _warn_of_cuts(cuts, len(tokenized), recipe)
    if cuts.same_answers == len(tokenized):
        raise DataError(
            f"no pair of {name} has two answers that differ within their first tokens",
            f"raise dpo.max_length (now {recipe.dpo.max_length})",
        )
    if cuts.same_answers:
        tokenized = tokenized.filter(lambda same: not same, input_columns="same_answers", desc="checking cuts")
        unusable = (*unusable, *left_out(zip(usable, same, strict=True)))
    return tokenized.remove_columns([*Cut._fields, "reason", "hint"]), unusable


def _warn_of_cuts(cuts: Cut, rows: int, recipe: Recipe) -> None:
    """Log a warning for each kind of cut that happened."""
    name, dpo = recipe.dataset.name, recipe.dpo
    messages = (
        (cuts.cut_prompt, f"prompts were cut to their last {dpo.max_prompt_length} tokens (dpo.max_prompt_length)"),
        (cuts.cut_answers, f"pairs have an answer that was cut (dpo.max_length {dpo.max_length})"),
        (cuts.same_answers, "pairs were left out: after the cut both answers are the same"),
        (
            cuts.cut_between,
            "prompts lost their last tokens, which the template renders differently before an answer",
        ),
    )
    for count, what in messages:
        if count:
            logger.warning("%s: %d of %d %s", name, count, rows, what)


def _tokenize_raw(raw: Mapping[str, Any], tally: Tally | None, **settings: Any) -> dict[str, Any]:
    """A row of the table as `tokenize_row` returns it, with the reason why it is unusable, or ''."""
    if tally is not None:
        tally.add()
    try:
        if raw["broken"]:
            raise UnusableRow(raw["broken"])
        return {**tokenize_row(read_row(json.loads(raw["row"])), **settings), "reason": "", "hint": ""}
    except UnusableRow as error:
        nothing = {**PairIds([], [], [])._asdict(), **Cut(0, 0, 0, 0)._asdict()}
        return {**nothing, "reason": str(error), "hint": error.hint}


def tokenize_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    dpo: Dpo,
    system: str | None = None,
    ends: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """One row as `prompt_ids, chosen_ids, rejected_ids`, cut to length, with the fields of `Cut`.

    Prompt and answer are tokenized together, as in inference, and split at the first token that differs between the
    two pairs and the prompt alone: otherwise a tokenizer that marks the start of a text would begin every answer with a
    token that never follows a prompt. `ends`: the tokens that may end an answer; None = any. Raises `UnusableRow`.
    """
    texts = render_row(row, tokenizer, system)
    if ends is not None and not all(text.rstrip().endswith(ends) for text in texts[1:]):
        raise UnusableRow(
            "an answer doesn't end with an end token, so a model trained on it never stops",
            "let the chat template end an answer with the tokenizer's end token, or set dataset.end_tokens: optional",
        )
    # The template has already added the special tokens; adding them again would double the first one.
    special = row.plain or not tokenizer.chat_template
    alone, *together = (list(tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts)
    length = min(common_prefix(alone, whole) for whole in together)
    whole = PairIds(alone[:length], together[0][length:], together[1][length:])
    fitted = fit_pair(*whole, dpo)
    return {**fitted._asdict(), **what_was_cut(whole, fitted, length < len(alone))._asdict()}


def _share(source: Source) -> datasets.Dataset:
    """The share of a set as a table of `row` (JSON), `where` (its position, for people) and `broken` (a reason).

    JSON, because a table's column has one type, which gives each row the keys of all rows. Raises `DataError`.
    """
    try:
        table = pyarrow.Table.from_batches(_batches(source), _SCHEMA)
    except UnicodeDecodeError as error:  # parquet: Arrow doesn't check
        raise DataError(
            f"{source.name} contains text that is not valid UTF-8: {error}", "re-encode the file as UTF-8"
        ) from error
    except (pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source.name} can't be read: {error.__cause__ or error}", "rewrite the file") from error
    if not len(table):
        raise no_rows(source)
    rows = datasets.Dataset(datasets.table.InMemoryTable(table))
    return rows if source.fraction == 1 else rows.select(range(source.share_of(len(rows))))


_SCHEMA = pyarrow.schema([(name, pyarrow.large_string()) for name in ("row", "where", "broken")])


def _batches(source: Source) -> Iterator[pyarrow.RecordBatch]:
    batch: list[dict[str, str]] = []
    for where, raw in _raw_rows(source):
        row, broken = as_text(raw)
        batch.append({"where": where, "row": row, "broken": broken})
        if len(batch) == BATCH_ROWS:
            yield pyarrow.RecordBatch.from_pylist(batch, _SCHEMA)
            batch = []
    yield pyarrow.RecordBatch.from_pylist(batch, _SCHEMA)


def _raw_rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a set, with our column names, and where it is."""
    path = local_path(source)
    if path is not None and path.suffix != ".parquet":
        yield from rows_of_jsonl(path, source)  # our own reader, for errors with a line number
        return
    rows = _load(source)
    columns = find_columns(rows.column_names, source)
    name = source.name if path is None else path.name
    for number, row in enumerate(rows.select_columns(list(columns.values())), 1):
        yield f"{name} row {number}", {ours: without_nulls(row[theirs]) for ours, theirs in columns.items()}


def _load(source: Source) -> datasets.Dataset:
    """A set on the Hub or in a parquet file, through `datasets`."""
    path = local_path(source)
    if path is None:
        with translated_errors("the data set", source.name, "dataset.name"):
            return datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
    parquet_columns(path)  # raises for a file that isn't parquet
    if not parquet.read_metadata(path).num_rows:  # `datasets` can't load it
        raise no_rows(source)
    with translated_errors("the data set", source.name, "dataset.name"):
        return datasets.Dataset.from_parquet(str(path))
