"""The curves that people look at: W&B and TensorBoard, of the first rank.

They are mirrors of the run's record, which has each row before they do (`trainer.metrics.past_rows`), and each shows
one curve over all attempts, every step once. Neither is worth a run: one that fails is left out.
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
"""What a tracker may take until training begins without it: an unreachable W&B would block a paid machine forever."""
CLOSE_S = 30.0
"""What W&B may take to send its last rows: away, it would try for ever, on a machine that costs money."""


class Curve(Protocol):
    """One tracker of one attempt."""

    def show(self, row: Row) -> None:
        """Show a row. Rows come in order; those that earlier attempts have shown may come again."""

    def close(self) -> None:
        """No more rows."""


class _Opening:
    """A tracker that is being opened, in a thread: W&B's own client waits for its server without an end."""

    def __init__(self, opener: Callable[[], Curve]) -> None:
        self.rows: list[Row] = []
        """That it has to show once it is open."""
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
        """None while it isn't. Raises what the opener raised."""
        self._thread.join(seconds)
        if self._error is not None:
            raise self._error if isinstance(self._error, Exception) else RuntimeError(repr(self._error))
        return self._curve


class Curves:
    """The trackers that work. They may raise what they like: it is said once, and the training goes on without.

    One that isn't open after `OPEN_S` is opened beside the training, and then shown what it has missed.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Curve]], open_s: float = OPEN_S) -> None:
        self._curves: dict[str, Curve] = {}
        self._opening = {name: _Opening(opener) for name, opener in openers.items()}
        until = time.monotonic() + open_s
        for name in openers:
            self._adopt(name, max(0.0, until - time.monotonic()))
        for name in self._opening:
            logger.warning("%s does not answer: the training begins without it, and it gets the metrics later", name)

    def _adopt(self, name: str, seconds: float) -> None:
        """Of those that are being opened, if it is open by now."""
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
        """No more rows. The process ends without Python's exit handlers, so the trackers have to be told."""
        self.show(())
        for name in self._opening:
            logger.warning("%s has never answered (the metrics are in the bucket)", name)
        for name, curve in list(self._curves.items()):
            try:
                curve.close()
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._curves.pop(name, None)
        reason = f"{type(error).__name__}: {error}"
        logger.warning("going on without %s: %s (the metrics are in the bucket all the same)", name, reason)


class WandbCurve:
    """One run on W&B over all attempts; `WANDB_RUN_ID` and `WANDB_RESUME` in the environment say which.

    W&B has a row number of its own, which only grows. Ours are 2 s for step s and 2 s + 1 for its evaluation, so that
    W&B itself knows what it has, and an evaluation that a resume makes up for still finds its place. The charts' axis
    is `train/global_step`.
    """

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        """Raises what W&B raises where it is away."""
        if sys.modules.get("wandb", self) is None:  # see `trainer.metrics.tracker_setup.hide_wandb`
            del sys.modules["wandb"]
        import wandb

        project = os.environ.get("WANDB_PROJECT", "huggingface")
        self._run = wandb.init(project=project, name=run, config=dict(config), allow_val_change=True)
        self._run.define_metric(X_AXIS)
        self._run.define_metric("*", step_metric=X_AXIS, step_sync=True)

    def show(self, row: Row) -> None:
        """Rows that W&B has already are left out."""
        number = 2 * row.step + row.evaluation
        if number >= self._run.step:  # the next one that it takes; after a resume W&B's server says which
            self._run.log({**_named(row), X_AXIS: row.step}, step=number, commit=True)

    def close(self) -> None:
        """Have the last rows sent, if that can be done in `CLOSE_S`."""
        ending = threading.Thread(target=self._run.finish, name="wandb", daemon=True)
        ending.start()
        ending.join(CLOSE_S)
        if ending.is_alive():
            logger.warning("W&B doesn't take its last rows (the metrics are in the bucket all the same)")


class TensorBoardCurve:
    """A file of events, which takes the place of all that earlier attempts have written from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def show(self, row: Row) -> None:
        """Into the file, which the supervisor sends to the bucket."""
        for name, value in _named(row).items():
            self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self) -> None:
        """The file is whole."""
        self._writer.close()


def first_step_shown(past: Sequence[Row], resumed_step: int) -> int:
    """From which step on this attempt draws TensorBoard's curve: all that the record has, or what is new."""
    return past[0].step if past else resumed_step + 1


def _named(row: Row) -> dict[str, float]:
    """As the Trainer's own reports call them, so that charts which people have made still work."""
    if not row.evaluation:
        return {f"train/{name}": value for name, value in row.values.items()}
    return {f"eval/{name.removeprefix('eval_')}": value for name, value in row.values.items()}
