"""The token ids of a run: their hash, and whether the model's embedding has a row for each.

An id without one causes an index error in the first step, on a GPU a device-side assertion.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute
import xxhash

from trainer.config.model_config import embedding_rows
from trainer.data.dataset import Pairs
from trainer.errors import DataError

FIX = (
    "use the tokenizer that belongs to the model, or give the model its rows: "
    "model.resize_token_embeddings(len(tokenizer)), and save both"
)


def check_token_ids(pairs: Pairs, tokenizer: Any, config: Any, name: str) -> None:
    """Check that the embedding of the base model `name` has a row for each token id of `pairs`, and for padding.

    Raises `DataError`.
    """
    rows = embedding_rows(config.to_dict())
    if rows is None:
        return
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    found = max((_largest(part) for part in (pairs.train, pairs.evaluation) if part is not None), default=-1)
    largest = max(found, -1 if pad is None else pad)
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise DataError(
            f"token id {largest} {token!r} of {name}'s tokenizer is outside the embedding of {rows} rows "
            "(vocab_size in config.json)",
            FIX,
        )


def hash_ids(pairs: Pairs) -> str:
    """xxh3-128 of all ids in order, training rows first, then evaluation rows."""
    digest = xxhash.xxh3_128()
    for part in filter(None, (pairs.train, pairs.evaluation)):
        for name in sorted(part.column_names):
            column = part.data.table.column(name)
            for values in (pyarrow.compute.list_value_length(column), pyarrow.compute.list_flatten(column)):
                digest.update(values.to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def _largest(rows: Any) -> int:
    """The largest id in a set."""
    table = rows.data.table
    columns = (table.column(name) for name in table.column_names if name.endswith("_ids"))
    return max(
        (pyarrow.compute.max(pyarrow.compute.list_flatten(column)).as_py() or 0 for column in columns), default=0
    )
