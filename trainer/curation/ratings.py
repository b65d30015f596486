"""UltraFeedback's records as they are published by OpenBMB, read with all that is odd in them. Pure.

A record has an `instruction` and `completions`, each with a `response`, the `model` that wrote it, an `overall_score`
and `annotations` of four aspects. An aspect is one annotation or a list of them; a `Rating` is a number from 1 to 5 as
text, or "N/A". What is missing or odd is counted, and never guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.rows import encodable

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
LOWEST, HIGHEST = 1.0, 5.0


class Completion(NamedTuple):
    """An answer whose four aspects are all rated."""

    model: str
    response: str
    mean: float
    """Of the four aspects, 1 to 5."""
    overall: float | None


class Record(NamedTuple):
    """One instruction and its rated answers."""

    source: str
    instruction: str
    completions: tuple[Completion, ...]
    oddities: Mapping[str, int]
    """What was left out of it, and why."""


def read_record(row: Mapping[str, Any]) -> Record:
    """A published record; answers that can't be compared are left out and counted by reason."""
    odd: Counter[str] = Counter()
    rated = []
    told = row.get("completions")
    for completion in told if isinstance(told, Sequence) and not isinstance(told, str) else ():
        reason, found = _read_completion(completion)
        if found is None:
            odd[reason] += 1
        else:
            rated.append(found)
    instruction = row.get("instruction")
    return Record(
        _name(row.get("source")), instruction.strip() if isinstance(instruction, str) else "", tuple(rated), odd
    )


def rating(annotation: Any) -> float | None:
    """The rating of an aspect: the mean of its annotations' numbers from 1 to 5; None where there is none."""
    annotations = annotation if isinstance(annotation, list) else [annotation]
    found = [number for one in annotations if isinstance(one, Mapping) and (number := _number(one.get("Rating")))]
    valid = [number for number in found if LOWEST <= number <= HIGHEST]
    return sum(valid) / len(valid) if valid else None


def _read_completion(told: Any) -> tuple[str, Completion | None]:
    if not isinstance(told, Mapping):
        return "not an answer", None
    response = told.get("response")
    if not isinstance(response, str) or not response.strip():
        return "empty response", None
    if not encodable(response):
        return "response with half a character (a lone surrogate)", None
    annotations = told.get("annotations")
    if not isinstance(annotations, Mapping):
        return "no annotations", None
    ratings = []
    for aspect in ASPECTS:
        if not annotations.get(aspect):
            return f"no {aspect}", None
        value = rating(annotations[aspect])
        if value is None:
            return f"{aspect} not rated (N/A)", None
        ratings.append(value)
    mean = math.fsum(ratings) / len(ratings)
    return "", Completion(_name(told.get("model")), response, mean, _number(told.get("overall_score")))


def _name(value: Any) -> str:
    """Of a source or a model; "" where there is none that can be written down."""
    return value if isinstance(value, str) and encodable(value) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
