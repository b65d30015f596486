"""Queries to servers, all in parallel and with a timeout."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from checkpoints.errors import NotusError
from launcher.findings import Finding

ANSWER_S = 15.0
"""Timeout for all queries together: they run in parallel."""


class Answer(NamedTuple):
    """The answer of a server."""

    finding: Finding
    rows: int | None = None
    """Rows of a data set, if its card states them."""


class Question(NamedTuple):
    """One query to a server."""

    what: str
    """The subject, as in `Finding.what`."""
    ask: Callable[[], Answer]
    """Raises `NotusError` for what is wrong. Any other exception means that the answer isn't known."""
    of_data: bool = False
    """Does the answer contain the rows of a data set?"""


def answers(questions: Sequence[Question], limit_s: float = ANSWER_S) -> list[Answer]:
    """One answer per question. A late query is left in a thread that ends with the process."""
    received: dict[int, Answer] = {}

    def ask(place: int) -> None:
        received[place] = _answer(questions[place])

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(questions))]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    late = f"no answer within {limit_s:.0f} s"
    return [received.get(place) or _unknown(question, late) for place, question in enumerate(questions)]


def _answer(question: Question) -> Answer:
    try:
        return question.ask()
    except NotusError as error:
        return Answer(Finding(question.what, "wrong", error.message, error.hint))
    except Exception as error:  # clients raise many kinds, and an unavailable server must not prevent a launch
        words = str(error).strip().splitlines()
        return _unknown(question, words[0] if words else type(error).__name__)


def _unknown(question: Question, why: str) -> Answer:
    return Answer(Finding(question.what, "unknown", f"could not be checked: {why}"))
