"""UltraFeedback's records as they are published by OpenBMB, read with all that is odd in them. Pure.

A record has an `instruction` and `completions`, each with a `response`, the `model` that wrote it, an `overall_score`
and `annotations` of four aspects. An aspect is one annotation or a list of them; a `Rating` is a number from 1 to 5 as
text, or "N/A": UltraFeedback's own prompt asks for that where an aspect has no meaning, as honesty in creative writing.
So an answer's rating is the mean of the aspects that are rated, as in UltraFeedback's own script. What is missing or
odd is counted, and never guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.data.trl_formats import encodable

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
LOWEST, HIGHEST = 1.0, 5.0


class Completion(NamedTuple):
    """An answer that is rated."""

    model: str
    response: str
    mean: float
    """Of the aspects that are rated, 1 to 5."""
    overall: float | None
    unrated: tuple[str, ...] = ()
    """Aspects without a rating."""


class Record(NamedTuple):
    """One instruction and its rated answers."""

    source: str
    instruction: str
    completions: tuple[Completion, ...]
    oddities: Mapping[str, int]
    """What was left out of it, and why."""


def read_record(row: Mapping[str, Any], *, strict: bool = False) -> Record:
    """Read a published record; answers that can't be compared are left out and counted by reason.

    `strict` also leaves out the answers for which an aspect is not rated.
    """
    odd: Counter[str] = Counter()
    rated = []
    told = row.get("completions")
    for completion in told if isinstance(told, Sequence) and not isinstance(told, str) else ():
        reason, found = _read_completion(completion, strict=strict)
        if found is None:
            odd[reason] += 1
        else:
            rated.append(found)
    instruction = row.get("instruction")
    return Record(_name(row.get("source")), instruction if isinstance(instruction, str) else "", tuple(rated), odd)


def rating(annotation: Any) -> float | None:
    """The rating of an aspect: the mean of its annotations' numbers from 1 to 5; None where there is none."""
    annotations = annotation if isinstance(annotation, list) else [annotation]
    found = [number for one in annotations if isinstance(one, Mapping) and (number := _number(one.get("Rating")))]
    valid = [number for number in found if LOWEST <= number <= HIGHEST]
    return sum(valid) / len(valid) if valid else None


def _read_completion(told: Any, *, strict: bool) -> tuple[str, Completion | None]:
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
    rated = {aspect: value for aspect in ASPECTS if (value := rating(annotations.get(aspect))) is not None}
    unrated = tuple(aspect for aspect in ASPECTS if aspect not in rated)
    if not rated or (strict and unrated):
        return (f"{unrated[0]} not rated (N/A)" if rated else "no aspect rated"), None
    mean = math.fsum(rated.values()) / len(rated)
    return "", Completion(_name(told.get("model")), response, mean, _number(told.get("overall_score")), unrated)


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
