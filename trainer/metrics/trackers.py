"""Curves in W&B and TensorBoard, written by the first rank.

They mirror the run's record, which gets each row first (`trainer.metrics.past_rows`), and each shows one curve over all
attempts, every step once. A tracker that fails is dropped, and the run continues.
"""

from __future__ import annotations

import logging
import os
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
"""How long W&B may take to send its last rows: if unreachable, it would try forever on a paid machine."""


class Curve(Protocol):
    """One tracker of one attempt."""

    def show(self, row: Row) -> None:
        """Show a row. Rows come in order; those that earlier attempts have shown may come again."""

    def close(self) -> None:
        """Finish; there are no more rows."""


class _Opening:
    """A tracker that is being opened, in a thread: W&B's own client waits forever for its server."""

    def __init__(self, opener: Callable[[], Curve]) -> None:
        self.rows: list[Row] = []
        """Rows to show once it is open."""
        self._opener = opener
        self._curve: Curve | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._open, name="tracker", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        try:
            self._curve = self._opener()
        except BaseException as error:  # some of its errors are exits
            self._error = error

    def opened(self, seconds: float) -> Curve | None:
        """The open tracker, or None if it isn't open yet. Raises what the opener raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error if isinstance(self._error, Exception) else RuntimeError(repr(self._error))
        return self._curve


class Curves:
    """The trackers that work. If one raises anything, that is logged once, and training continues without it.

    One that isn't open after `OPEN_S` is opened during training, and then gets the rows that it has missed.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Curve]], open_s: float = OPEN_S) -> None:
        self._curves: dict[str, Curve] = {}
        self._opening = {name: _Opening(opener) for name, opener in openers.items()}
        until = time.monotonic() + open_s
        for name in openers:
            self._adopt(name, max(0.0, until - time.monotonic()))
        for name in self._opening:
            logger.warning("%s does not respond: training starts without it, and it gets the metrics later", name)

    def _adopt(self, name: str, seconds: float) -> None:
        """Move a tracker that is being opened to the open ones, if it is open by now."""
        opening = self._opening[name]
        try:
            curve = opening.opened(seconds)
            if curve is None:
                return
            self._curves[name] = curve
            for row in opening.rows:
                curve.show(row)
        except Exception as error:
            self._leave_out(name, error)
        del self._opening[name]

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows, in order."""
        were_open = list(self._curves.items())
        for name, opening in list(self._opening.items()):
            opening.rows += rows
            self._adopt(name, 0.0)
        for name, curve in were_open:
            try:
                for row in rows:
                    curve.show(row)
            except Exception as error:
                self._leave_out(name, error)

    def close(self) -> None:
        """Close the trackers. The process ends without Python's exit handlers, so this must be explicit."""
        self.show(())
        for name in self._opening:
            logger.warning("%s never responded (the metrics are in the bucket)", name)
        for name, curve in list(self._curves.items()):
            try:
                curve.close()
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._curves.pop(name, None)
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
        """Send the last rows, if that takes at most `CLOSE_S`."""
        ending = threading.Thread(target=self._run.finish, name="wandb", daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            logger.warning("W&B doesn't accept its last rows (the metrics are in the bucket anyway)")


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
