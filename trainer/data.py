"""The recipe's data set as token ids: loaded, checked, formatted, cut, split."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow
from jinja2.exceptions import TemplateError
from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from trainer.errors import DataError
from trainer.loading import blaming
from trainer.pairs import (
    COLUMN_SETS,
    Cut,
    PairIds,
    common_prefix,
    find_columns,
    fingerprint_rows,
    fit_pair,
    is_conversation,
    local_path,
    parquet_columns,
    read_jsonl,
    text_of,
    text_or_nothing,
    usable,
    what_was_cut,
)
from trainer.recipe import Dataset, Dpo, Recipe, Source

logger = logging.getLogger(__name__)

PARALLEL_FROM_ROWS = 2000
"""Below, starting worker processes takes longer than tokenising."""


class Pairs(NamedTuple):
    """Tokenised preference pairs and what identifies them."""

    train: datasets.Dataset
    evaluation: datasets.Dataset | None
    fingerprint: str
    """xxh3 of the raw rows in order: a data set that changed between two attempts is noticed."""


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Load the recipe's data set and turn it into token ids.

    Raises:
        DataError: the set can't be found or read, lacks a column, or has no usable row.
    """
    rows = _mix(recipe.dataset)
    if recipe.dataset.rows:
        rows = rows.select(range(min(recipe.dataset.rows, len(rows))))
    try:
        fingerprint = fingerprint_rows(rows)
    except UnicodeDecodeError as error:  # parquet: Arrow doesn't look
        sets = ", ".join(source.name for source in recipe.dataset.sources)
        raise DataError(f"a text of {sets} is not UTF-8: {error}", "write the file anew") from error
    tokenised = _tokenise(_without_unusable(rows, recipe.dataset.name), recipe, tokenizer)
    if not recipe.dataset.eval_rows:
        return Pairs(tokenised, None, fingerprint)
    if recipe.dataset.eval_rows >= len(tokenised):
        raise DataError(
            f"dataset.eval_rows is {recipe.dataset.eval_rows}, but {recipe.dataset.name} has only "
            f"{len(tokenised)} usable rows",
            "hold out fewer rows",
        )
    split = tokenised.train_test_split(test_size=recipe.dataset.eval_rows, seed=recipe.dataset.seed)
    return Pairs(split["train"], split["test"], fingerprint)


def _tokenise(rows: datasets.Dataset, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Token ids of each row; says how many were cut, and leaves out those whose answers are then the same."""
    tokenised = rows.map(
        tokenise_row,
        fn_kwargs={"tokenizer": tokenizer, "dpo": recipe.dpo, "system": recipe.dataset.system},
        remove_columns=rows.column_names,
        num_proc=recipe.dataset.workers if len(rows) > PARALLEL_FROM_ROWS else None,
        desc="tokenising",
    )
    cuts = Cut(*(sum(tokenised[name]) for name in Cut._fields))
    _say(cuts, len(rows), recipe)
    if cuts.same_answers == len(rows):
        raise DataError(
            f"no pair of {recipe.dataset.name} has two answers that differ within their first tokens",
            f"raise dpo.max_length (now {recipe.dpo.max_length})",
        )
    if cuts.same_answers:
        tokenised = tokenised.filter(lambda same: not same, input_columns="same_answers", desc="checking cuts")
    return tokenised.remove_columns(list(Cut._fields))


def _say(cuts: Cut, rows: int, recipe: Recipe) -> None:
    """A warning for each kind of cut that happened."""
    name, dpo = recipe.dataset.name, recipe.dpo
    told = (
        (cuts.cut_prompt, f"prompts were cut to their last {dpo.max_prompt_length} tokens (dpo.max_prompt_length)"),
        (cuts.cut_answers, f"pairs have an answer that was cut (dpo.max_length {dpo.max_length})"),
        (cuts.same_answers, "pairs were left out: after the cut both answers are the same"),
    )
    for count, what in told:
        if count:
            logger.warning("%s: %d of %d %s", name, count, rows, what)


def format_pair(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, system: str | None = None
) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text: by the tokenizer's chat template, or plain with an end token.

    A prompt that is a conversation keeps all its turns, a system turn of its own too; otherwise it gets `system`, if
    that isn't None. An answer that is a conversation gives its last turn.

    Raises:
        DataError: the template renders the prompt differently with and without an answer.
    """
    prompt, *answers = (row[column] for column in COLUMN_SETS[0])
    texts = [text_of(answer) for answer in answers]
    if not tokenizer.chat_template:
        end = tokenizer.eos_token or ""
        return text_of(prompt), texts[0] + end, texts[1] + end
    turns = list(prompt) if is_conversation(prompt) else [{"role": "user", "content": text_of(prompt)}]
    if system is not None and turns[0].get("role") != "system":
        turns = [{"role": "system", "content": system}, *turns]
    rendered = _render(tokenizer, turns, add_generation_prompt=True)
    completions = []
    for text in texts:
        conversation = [*turns, {"role": "assistant", "content": text}]
        whole = _render(tokenizer, conversation)
        if not whole.startswith(rendered):
            raise DataError(
                "the chat template renders the prompt differently with and without an answer",
                "choose a model whose template puts the answer after the generation prompt",
            )
        completions.append(whole[len(rendered) :])
    return rendered, completions[0], completions[1]


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], **more: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **more))
    except (TemplateError, TypeError) as error:  # the latter for a turn without content
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise DataError(
            f"the model's chat template refuses a conversation of {roles}: {error}",
            "where it has no system turn (Gemma), leave out dataset.system and system turns of the prompts",
        ) from error


def tokenise_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, dpo: Dpo, system: str | None = None
) -> dict[str, Any]:
    """One row as `prompt_ids, chosen_ids, rejected_ids`, cut to length, with the fields of `Cut`.

    Prompt and answer are tokenised together, as inference sees them, and parted where the two pairs and the prompt
    alone stop to agree: a tokenizer that marks the beginning of a text would otherwise start every answer with a token
    that never follows a prompt.
    """
    # The template has put the special tokens where they belong; adding them again would double the first one.
    special = not tokenizer.chat_template
    prompt, *answers = format_pair(row, tokenizer, system)
    alone, *together = (
        list(tokenizer(text, add_special_tokens=special)["input_ids"])
        for text in (prompt, *(prompt + answer for answer in answers))
    )
    length = min(common_prefix(alone, whole) for whole in together)
    whole = PairIds(alone[:length], together[0][length:], together[1][length:])
    fitted = fit_pair(*whole, dpo)
    return {**fitted._asdict(), **what_was_cut(whole, fitted)._asdict()}


def _without_unusable(rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """Leave out rows in which a text is missing or empty, and pairs without a difference; count them."""
    kept = rows.filter(usable, desc="checking rows")
    if not len(kept):
        raise DataError(f"none of the {len(rows)} rows of {where} has a prompt and two different answers")
    if len(kept) < len(rows):
        logger.warning(
            "%s: left out %d of %d rows (empty, equal or broken texts)", where, len(rows) - len(kept), len(rows)
        )
    return kept


def _mix(dataset: Dataset) -> datasets.Dataset:
    """The wanted share of each set, one after the other, with the columns that we know; the sampler shuffles them."""
    parts = [_share(source) for source in dataset.sources]
    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(
            f"{', '.join(source.name for source in dataset.sources)} can't be mixed: their columns are of other kinds",
            "make all prompts (and answers) texts, or all of them conversations",
        ) from error


def _share(source: Source) -> datasets.Dataset:
    """The wanted share of a set, with the columns prompt, chosen, rejected. Raises `DataError`."""
    try:
        rows = _load_rows(source)
    except (pyarrow.ArrowException, datasets.exceptions.DatasetsError, TypeError, OverflowError) as error:
        raise DataError(
            f"{source.name} can't become a table: {error.__cause__ or error}",
            "make a column's values all texts, or all conversations with the same keys",
        ) from error
    if not len(rows):
        raise _no_rows(source)
    return rows if source.fraction == 1 else rows.select(range(max(1, round(source.fraction * len(rows)))))


def _no_rows(source: Source) -> DataError:
    return DataError(f"{source.name} has no rows", "take it out of the recipe, or give one with rows")


def _load_rows(source: Source) -> datasets.Dataset:
    path = local_path(source)
    if path is not None and path.suffix != ".parquet":
        return _load_jsonl(path, source.name)
    if path is None:
        with blaming("the data set", source.name, "dataset.name"):
            rows = datasets.load_dataset(source.name, split=source.split, revision=source.revision)
    else:
        parquet_columns(path)  # raises for a file that is no parquet
        if not parquet.read_metadata(path).num_rows:  # `datasets` can't load it
            raise _no_rows(source)
        rows = datasets.Dataset.from_parquet(str(path))
    columns = find_columns(rows.column_names, source.name)
    return rows.select_columns(list(columns)).rename_columns(dict(zip(columns, COLUMN_SETS[0], strict=True)))


def _load_jsonl(path: Path, name: str) -> datasets.Dataset:
    """Through our own reader and not through `datasets`, for errors with a line number.

    Only of the columns that we use: another one may hold numbers and texts at once. What is neither text nor
    conversation becomes None, which is counted as unusable.
    """
    rows = list(read_jsonl(path))
    columns = find_columns(list(rows[0]), name)
    return datasets.Dataset.from_dict(
        {
            ours: [text_or_nothing(row.get(theirs)) for row in rows]
            for ours, theirs in zip(COLUMN_SETS[0], columns, strict=True)
        }
    )
