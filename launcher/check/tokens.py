"""Estimate the tokens per row of a data set, with the model's own tokenizer if available."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.check.rows import CHARACTERS_PER_TOKEN
from launcher.findings import Finding
from trainer.config.recipe import BUILTIN, Recipe
from trainer.data.row_count import RowCount, Texts

LENGTHS = "lengths"
FILE = "tokenizer.json"
FEW, MANY = 0.005, 0.1
"""Shares of the rows that truncation affects."""


class Lengths(NamedTuple):
    """Tokens of the prompt and its longer answer for a sample of rows, without the chat template."""

    tokens: Sequence[float]
    measured: bool
    """Counted with the model's tokenizer, not estimated from characters."""

    def mean(self, most: int) -> float:
        """Mean length after truncation to `most`."""
        return float(np.mean(np.minimum(self.tokens, most)))


def lengths_of(sample: Sequence[Texts], tokenizer: Any | None) -> Lengths:
    """Lengths of a sample. `tokenizer`: from the `tokenizers` package, or None."""
    if tokenizer is None:
        return Lengths([texts.longest / CHARACTERS_PER_TOKEN for texts in sample], measured=False)
    flat = [text for texts in sample for text in texts]
    counts = [len(encoded.ids) for encoded in tokenizer.encode_batch(flat, add_special_tokens=False)]
    three = np.reshape(counts, (-1, 3))
    return Lengths((three[:, 0] + three[:, 1:].max(axis=1)).tolist(), measured=True)


def sample_lengths(recipe: Recipe, counts: Sequence[RowCount]) -> Lengths | None:
    """Lengths of the sampled rows; None if there are none, or for a built-in model, which has no tokenizer.json."""
    sample = [texts for count in counts for texts in count.sample]
    if not sample or recipe.model.name.startswith(BUILTIN):
        return None
    return lengths_of(sample, local_tokenizer(recipe))


def local_tokenizer(recipe: Recipe) -> Any | None:
    """Return the tokenizer of a base model in a local folder, from the `tokenizers` package.

    None for other models, and if the package or the file is missing or can't be read, which the trainer reports in
    detail.
    """
    path = Path(recipe.model.name) / FILE
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the package raises nothing narrower
        return None


def about_lengths(recipe: Recipe, lengths: Lengths) -> Finding:
    """How many rows will be truncated."""
    most = recipe.dpo.max_length
    share = float(np.mean(np.asarray(lengths.tokens) > most))
    how = "by the model's tokenizer" if lengths.measured else f"at {CHARACTERS_PER_TOKEN:.0f} characters per token"
    typical = np.percentile(lengths.tokens, [50, 95])
    summary = (
        f"about {typical[0]:,.0f} tokens per row, 95 % up to {typical[1]:,.0f} ({how}, {len(lengths.tokens):,} rows, "
        "without the chat template)"
    )
    if share < FEW:
        return Finding(LENGTHS, "ok", f"{summary}; dpo.max_length {most:,} truncates almost none")
    cut = f"{summary}; dpo.max_length {most:,} truncates about {share:.0%} of them"
    if share <= MANY:
        return Finding(LENGTHS, "ok", cut)
    return Finding(LENGTHS, "warning", cut, "raise dpo.max_length if the GPUs' memory allows it")
