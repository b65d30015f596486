"""The trackers' rows of earlier attempts, read from the run's record during the imports.

A lost machine takes the last seconds of its trackers' rows with it, and its successor repeats some steps. So each
attempt redraws the curves from the record, up to the step that it resumes from: no duplicates, no gaps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Evaluated
from checkpoints.run_log.event_log import Event, of_kind, read_events
from checkpoints.run_log.metrics import StepMetrics, read_metrics
from checkpoints.storage.base import Store

logger = logging.getLogger(__name__)

LOGGED = "logged"
"""Key in a step's line of the record: the row for the trackers."""


class Row(NamedTuple):
    """One row of the curves, after this optimizer step."""

    step: int
    evaluation: bool
    """Is it an evaluation of the model after the step? It comes after the step's own row."""
    values: dict[str, float]


class History:
    """Reads the record in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._metrics: list[StepMetrics] = []
        self._events: list[Event] = []
        self._thread = threading.Thread(target=self._read, name="history", daemon=True)
        self._thread.start()

    def rows(self, step: int, *, evaluation_due: bool) -> list[Row]:
        """The rows up to `step`, in order; without its evaluation if that is due again. Empty if unreadable."""
        self._thread.join()
        return past_rows(self._metrics, self._events, step, evaluation_due=evaluation_due)

    def _read(self) -> None:
        try:
            self._metrics, self._events = read_metrics(self._store, rank=0), read_events(self._store)
        except NotusError as error:
            logger.warning("the trackers may miss steps of earlier attempts: %s", error.message)


def past_rows(metrics: Iterable[StepMetrics], events: Iterable[Event], step: int, *, evaluation_due: bool) -> list[Row]:
    """See `History.rows`. For a repeated step, the last attempt's row counts."""
    rows = [Row(line.step, False, line.values[LOGGED]) for line in metrics if LOGGED in line.values]
    rows += [Row(found.step, True, numbers(found.metrics)) for _, found in of_kind(events, Evaluated)]
    kept = {(row.step, row.evaluation): row for row in rows if row.step <= step}
    if evaluation_due:
        kept.pop((step, True), None)
    return [kept[key] for key in sorted(kept)]


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The values that are numbers, so that a curve can show them."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
