"""What the trackers were shown by earlier attempts, read from the run's record beside the imports.

A machine that is lost takes the last seconds of its trackers' rows with it, and its successor does some steps again. So
each attempt draws the curves anew from the record, up to the step that it resumes from: nothing twice, no gap.
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
"""In a step's line of the record: the row that the trackers see."""


class Row(NamedTuple):
    """One row of the curves, after this optimizer step."""

    step: int
    evaluation: bool
    """Of the model after the step, and not of the step itself; it comes after the step's own row."""
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
        """The rows up to `step`, in order; without its evaluation if that is due again. Nothing if it can't be read."""
        self._thread.join()
        return past_rows(self._metrics, self._events, step, evaluation_due=evaluation_due)

    def _read(self) -> None:
        try:
            self._metrics, self._events = read_metrics(self._store, rank=0), read_events(self._store)
        except NotusError as error:
            logger.warning("the trackers may miss steps of earlier attempts: %s", error.message)


def past_rows(metrics: Iterable[StepMetrics], events: Iterable[Event], step: int, *, evaluation_due: bool) -> list[Row]:
    """See `History.rows`. Of a step that was done again, the last attempt's row counts."""
    rows = [Row(line.step, False, line.values[LOGGED]) for line in metrics if LOGGED in line.values]
    rows += [Row(found.step, True, numbers(found.metrics)) for _, found in of_kind(events, Evaluated)]
    kept = {(row.step, row.evaluation): row for row in rows if row.step <= step}
    if evaluation_due:
        kept.pop((step, True), None)
    return [kept[place] for place in sorted(kept)]


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Those of the values that a curve can have."""
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
