"""Questions to servers, all at once, and none of them waited for longer than a person would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from checkpoints.errors import NotusError
from launcher.findings import Finding

ANSWER_S = 15.0
"""For all questions together: they are asked at the same time."""


class Answer(NamedTuple):
    """What a server said."""

    finding: Finding
    rows: int | None = None
    """Of a data set whose card tells it."""


class Question(NamedTuple):
    """One question to a server."""

    what: str
    """What is asked about, as `Finding.what`."""
    ask: Callable[[], Answer]
    """Raises `NotusError` for what is wrong. Whatever else it raises means that it isn't known."""
    of_data: bool = False
    """Does the answer tell the rows of a set?"""


def answers(questions: Sequence[Question], limit_s: float = ANSWER_S) -> list[Answer]:
    """One for each question. What isn't answered in time is left behind in a thread that ends with the process."""
    heard: dict[int, Answer] = {}

    def ask(place: int) -> None:
        heard[place] = _answer(questions[place])

    threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(questions))]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    late = f"no answer within {limit_s:.0f} s"
    return [heard.get(place) or _unknown(question, late) for place, question in enumerate(questions)]


def _answer(question: Question) -> Answer:
    try:
        return question.ask()
    except NotusError as error:
        return Answer(Finding(question.what, "wrong", error.message, error.hint))
    except Exception as error:  # a client raises what it likes, and an absent server is no reason not to launch
        words = str(error).strip().splitlines()
        return _unknown(question, words[0] if words else type(error).__name__)


def _unknown(question: Question, why: str) -> Answer:
    return Answer(Finding(question.what, "unknown", f"could not be asked: {why}"))
