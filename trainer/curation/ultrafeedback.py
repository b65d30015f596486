"""Reads UltraFeedback's records as published by OpenBMB, with all their irregularities. Pure.

A record has an `instruction` and `completions`, each with a `response`, the `model` that wrote it, an `overall_score`
and `annotations` of four aspects. An aspect is one annotation or a list of them; a `Rating` is a number from 1 to 5 as
text, or "N/A", which UltraFeedback's own prompt asks for if an aspect doesn't apply (honesty in creative writing). So
an answer's rating is the mean of its rated aspects, as in UltraFeedback's own script. Missing or invalid values are
counted, never guessed.
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
    """A rated answer."""

    model: str
    response: str
    mean: float
    """Mean of the rated aspects, 1 to 5."""
    overall: float | None
    unrated: tuple[str, ...] = ()
    """Aspects without a rating."""


class Record(NamedTuple):
    """One instruction and its rated answers."""

    source: str
    instruction: str
    completions: tuple[Completion, ...]
    oddities: Mapping[str, int]
    """How many answers were left out, by reason."""


def read_record(row: Mapping[str, Any], *, strict: bool = False) -> Record:
    """Read a published record; answers that can't be compared are left out and counted by reason.

    `strict` also leaves out answers with an unrated aspect.
    """
    odd: Counter[str] = Counter()
    rated = []
    completions = row.get("completions")
    for completion in completions if isinstance(completions, Sequence) and not isinstance(completions, str) else ():
        reason, found = _read_completion(completion, strict=strict)
        if found is None:
            odd[reason] += 1
        else:
            rated.append(found)
    instruction = row.get("instruction")
    return Record(_name(row.get("source")), instruction if isinstance(instruction, str) else "", tuple(rated), odd)


def rating(annotation: Any) -> float | None:
    """The rating of an aspect: the mean of its annotations' numbers from 1 to 5; None if there are none."""
    annotations = annotation if isinstance(annotation, list) else [annotation]
    found = [number for one in annotations if isinstance(one, Mapping) and (number := _number(one.get("Rating")))]
    valid = [number for number in found if LOWEST <= number <= HIGHEST]
    return sum(valid) / len(valid) if valid else None


def _read_completion(completion: Any, *, strict: bool) -> tuple[str, Completion | None]:
    if not isinstance(completion, Mapping):
        return "not an answer", None
    response = completion.get("response")
    if not isinstance(response, str) or not response.strip():
        return "empty response", None
    if not encodable(response):
        return "response with half a character (a lone surrogate)", None
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        return "no annotations", None
    rated = {aspect: value for aspect in ASPECTS if (value := rating(annotations.get(aspect))) is not None}
    unrated = tuple(aspect for aspect in ASPECTS if aspect not in rated)
    if not rated or (strict and unrated):
        return (f"{unrated[0]} not rated (N/A)" if rated else "no aspect rated"), None
    mean = math.fsum(rated.values()) / len(rated)
    return "", Completion(
        _name(completion.get("model")), response, mean, _number(completion.get("overall_score")), unrated
    )


def _name(value: Any) -> str:
    """The name of a source or a model; "" if it is missing or can't be encoded."""
    return value if isinstance(value, str) and encodable(value) else ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
