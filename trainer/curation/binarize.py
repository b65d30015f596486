"""Makes a preference pair from a rated record: the answer with the highest mean rating against a lower one. Pure.

It uses the mean of the four aspects, not UltraFeedback's overall score, which is often wrong: the finding behind
Notus 7B.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trainer.curation.ultrafeedback import Completion, Record
from trainer.data.trl_formats import encodable

Rejected = Literal["random", "lowest"]
Ratings = Literal["any", "all"]


CONTAMINATED = "in the contamination list"


class Pair(NamedTuple):
    """A row of the result. The names are those of the published argilla/ultrafeedback-binarized-preferences."""

    source: str
    instruction: str
    chosen_response: str
    rejected_response: str
    chosen_avg_rating: float
    rejected_avg_rating: float
    chosen_model: str
    rejected_model: str


class LeftOut(NamedTuple):
    """Why a record makes no pair."""

    reason: str


@dataclass(frozen=True)
class Rules:
    """How pairs are made."""

    rejected: Rejected = "random"
    seed: int = 42
    contaminated: Set[str] = frozenset()
    """Instructions to leave out, for example those of a test set, normalized by `plain`."""
    dropped_sources: Set[str] = frozenset()
    ratings: Ratings = "any"
    """What an answer must have: any aspect rated, or all four."""


def binarize(record: Record, rules: Rules) -> Pair | LeftOut:
    """The pair of a record. The same record and rules give the same pair, wherever it is in the data."""
    if not record.instruction.strip():
        return LeftOut("no instruction")
    if not encodable(record.instruction):
        return LeftOut("instruction with half a character (a lone surrogate)")
    if record.source in rules.dropped_sources:
        return LeftOut(from_source(record.source))
    if plain(record.instruction) in rules.contaminated:
        return LeftOut(CONTAMINATED)
    if len(record.completions) < 2:
        return LeftOut("fewer than two rated answers")
    chosen = max(record.completions, key=lambda one: one.mean)  # the first if several are equal
    lower = [one for one in record.completions if one.mean < chosen.mean]
    if not lower:
        return LeftOut("a tie of all answers")
    rejected = (
        _lowest(lower) if rules.rejected == "lowest" else lower[_draw(record.instruction, rules.seed, len(lower))]
    )
    if chosen.response.strip() == rejected.response.strip():
        return LeftOut("both answers are the same text")
    return Pair(
        record.source, record.instruction, chosen.response, rejected.response, chosen.mean, rejected.mean,
        chosen.model, rejected.model,
    )  # fmt: skip


def from_source(name: str) -> str:
    """The reason for a record whose source is dropped."""
    return f"source {name}"


def overall_disagrees(record: Record) -> bool | None:
    """Would the overall score have chosen another answer? None if an answer has no score."""
    scores = [one.overall for one in record.completions]
    if len(scores) < 2 or any(score is None for score in scores):
        return None
    best = max(record.completions, key=lambda one: one.mean)
    top = max(score for score in scores if score is not None)
    return best.overall != top


def plain(text: str) -> str:
    """A text normalized for comparison: Unicode NFKC, case-folded, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _lowest(completions: list[Completion]) -> Completion:
    return min(completions, key=lambda one: one.mean)


def _draw(text: str, seed: int, count: int) -> int:
    """A number below `count` from the text and the seed, the same on every machine and in any order of records."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest, "little") % count
