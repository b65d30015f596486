"""Curves in W&B and TensorBoard, written by the first rank.

They mirror the run's record, which gets each row first (`trainer.metrics.past_rows`), and each shows one curve over all
attempts, every step once. A tracker that fails is dropped, and the run continues.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.metrics.past_rows import Row

logger = logging.getLogger(__name__)

X_AXIS = "train/global_step"
OPEN_S = 20.0
"""How long training waits for a tracker to open: an unreachable W&B would block a paid machine forever."""
CLOSE_S = 30.0
"""How long trackers may take for their last rows: an unreachable W&B would try forever on a paid machine."""
MOST_ROWS = 10_000
"""Rows that may wait for a tracker."""


class Curve(Protocol):
    """One tracker of one attempt."""

    def show(self, row: Row) -> None:
        """Show a row. Rows come in order; those that earlier attempts have shown may come again."""

    def close(self) -> None:
        """Finish; there are no more rows."""


class _Tracker:
    """A tracker in a thread of its own: W&B's client may wait forever, for its server or for its own process.

    The thread opens the tracker, shows it the rows that come, and closes it; training only puts rows into a queue.
    """

    def __init__(self, name: str, opener: Callable[[], Curve]) -> None:
        self.is_open = threading.Event()
        """Also set if it could not be opened."""
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._opener = opener
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._allowed = 0
        threading.Thread(target=self._run, name=f"tracker {name}", daemon=True).start()

    def put(self, rows: Sequence[Row]) -> None:
        """Hand over rows; raises `TimeoutError` if too many are waiting, beside those that a resume brings at once."""
        if self._rows.qsize() > self._allowed:
            raise TimeoutError(f"it has not accepted the last {MOST_ROWS:,} rows")
        self._allowed = max(self._allowed, MOST_ROWS + len(rows))
        for row in rows:
            self._rows.put(row)

    def end(self) -> None:
        """There are no more rows."""
        self._rows.put(None)

    def _run(self) -> None:
        try:
            curve = self._opener()
            self.is_open.set()
            while (row := self._rows.get()) is not None:
                curve.show(row)
            curve.close()
        except BaseException as error:  # some of W&B's errors are exits
            self.error = error
        self.is_open.set()
        self.ended.set()


class Curves:
    """The trackers that work. If one raises anything, that is logged once, and training continues without it.

    One that isn't open after `OPEN_S` is opened during training, and then gets the rows that it has missed.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Curve]], open_s: float = OPEN_S) -> None:
        self._trackers = {name: _Tracker(name, opener) for name, opener in openers.items()}
        until = time.monotonic() + open_s
        for name, tracker in list(self._trackers.items()):
            if not tracker.is_open.wait(max(0.0, until - time.monotonic())):
                logger.warning("%s does not respond: training starts without it, and it gets the metrics later", name)
        self._drop_failed()

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows, in order. Returns at once."""
        self._drop_failed()
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.put(rows)
            except TimeoutError as error:
                self._leave_out(name, error)

    def close(self) -> None:
        """Send the last rows, if that takes at most `CLOSE_S`, and close the trackers.

        The process ends without Python's exit handlers, so this must be explicit.
        """
        for tracker in self._trackers.values():
            tracker.end()
        until = time.monotonic() + CLOSE_S
        for name, tracker in self._trackers.items():
            if not tracker.ended.wait(max(0.0, until - time.monotonic())):
                what = "doesn't accept its last rows" if tracker.is_open.is_set() else "never responded"
                logger.warning("%s %s (the metrics are in the bucket anyway)", name, what)
        self._drop_failed()

    def _drop_failed(self) -> None:
        for name, tracker in list(self._trackers.items()):
            if tracker.error is not None:
                self._leave_out(name, tracker.error)

    def _leave_out(self, name: str, error: BaseException) -> None:
        del self._trackers[name]
        reason = f"{type(error).__name__}: {error}"
        logger.warning("continuing without %s: %s (the metrics are in the bucket anyway)", name, reason)


class WandbCurve:
    """One run on W&B for all attempts, identified by `WANDB_RUN_ID` and `WANDB_RESUME` in the environment.

    W&B has its own row number, which can only increase. Ours is 2 s for step s and 2 s + 1 for its evaluation, so that
    W&B itself knows what it has, and a late evaluation after a resume still fits in. The charts' axis is
    `train/global_step`.
    """

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        """Raises what W&B raises if it is unavailable."""
        if sys.modules.get("wandb", self) is None:  # see `trainer.metrics.tracker_setup.hide_wandb`
            del sys.modules["wandb"]
        import wandb

        project = os.environ.get("WANDB_PROJECT", "huggingface")
        self._run = wandb.init(project=project, name=run, config=dict(config), allow_val_change=True)
        self._run.define_metric(X_AXIS)
        self._run.define_metric("*", step_metric=X_AXIS, step_sync=True)

    def show(self, row: Row) -> None:
        """Show a row unless W&B already has it."""
        number = 2 * row.step + row.evaluation
        if number >= self._run.step:  # the next number that it accepts; after a resume it comes from W&B's server
            self._run.log({**_named(row), X_AXIS: row.step}, step=number, commit=True)

    def close(self) -> None:
        """Send the last rows, however long that takes."""
        self._run.finish()


class TensorBoardCurve:
    """An event file, which replaces what earlier attempts have written from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def show(self, row: Row) -> None:
        """Write a row to the file, which the supervisor copies to the bucket."""
        for name, value in _named(row).items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def first_step_shown(past: Sequence[Row], resumed_step: int) -> int:
    """The first step that this attempt draws in TensorBoard: the first in the record, or the first new one."""
    return past[0].step if past else resumed_step + 1


def _named(row: Row) -> dict[str, float]:
    """The row with the names that the Trainer's own reports use, so that users' existing charts still work."""
    if not row.evaluation:
        return {f"train/{name}": value for name, value in row.values.items()}
    return {f"eval/{name.removeprefix('eval_')}": value for name, value in row.values.items()}
