"""A rank's record of the training: a line per step, written to the bucket with each save and before W&B gets it."""

from __future__ import annotations

import logging
import math
import resource
import time
from typing import Any

import torch
from transformers import TrainerState

from checkpoints.errors import NotusError
from checkpoints.run_log.metrics import write_metrics
from checkpoints.save.saver import Saver
from checkpoints.storage.base import Store
from trainer.method import MethodTrainer
from trainer.metrics.past_rows import LOGGED, Row
from trainer.metrics.throughput import Meter, rewards_of

logger = logging.getLogger(__name__)


class StepRecord:
    """Records each step, and keeps the lines until they are delivered."""

    def __init__(
        self,
        trainer: MethodTrainer,
        meter: Meter,
        saver: Saver,
        store: Store,
        *,
        attempt: int,
        rank: int,
        wandb: bool,
    ) -> None:
        """`wandb`: does this rank report to W&B? W&B gets only what is in the bucket."""
        self._trainer = trainer
        self._meter = meter
        self._saver = saver
        self._store = store
        self._attempt, self._rank = attempt, rank
        self._wandb = wandb
        self._bucket_answers = True
        self.lines: list[dict[str, Any]] = []
        """Lines of the steps that no save has taken yet."""
        self._held: list[Row] = []
        """Rows that no tracker may show yet."""
        self._started, self._tokens_before = time.monotonic(), 0
        self.loss: float | None = None
        """The loss of the newest step."""

    def begin_step(self) -> None:
        """Start measuring a step."""
        self._started = time.monotonic()
        self._tokens_before = self._trainer._total_train_tokens

    def end_step(self, state: TrainerState) -> str:
        """Record the step and return ''; or return what in it isn't finite, and record nothing."""
        trainer, seconds = self._trainer, time.monotonic() - self._started
        losses = [loss.item() for loss in trainer.micro_losses]
        trainer.micro_losses = []
        if fault := _non_finite(losses, trainer.grad_norm):
            return fault
        self.loss = sum(losses) / len(losses)
        self.lines.append(
            {
                "step": state.global_step,
                "epoch": state.epoch,
                "loss": self.loss,
                "losses_hex": [loss.hex() for loss in losses],
                "grad_norm": trainer.grad_norm,
                "learning_rate": trainer._get_learning_rate(),
                "seconds": round(seconds, 4),
                **(rewards_of(trainer.rewards, len(losses)) if self._rank == 0 else {}),
                **self._meter.read(
                    tokens=trainer._total_train_tokens - self._tokens_before,
                    seconds=seconds,
                    stalled_s=self._saver.take_stall_s(),
                    memory_gib=_peak_memory_gib(),
                ),
            }
        )
        return ""

    def taken(self) -> None:
        """A save has taken the lines and will deliver them."""
        self.lines = []
        self._bucket_answers = True

    def more_figures(self) -> dict[str, float]:
        """What a log line of the training has besides TRL's figures: means since the last one."""
        return self._meter.means()

    def logged(self, row: Row) -> list[Row]:
        """Add a row for the trackers; returns the rows that they may show now, in order.

        The record is written before W&B, whose run may be unavailable or deleted. If the bucket doesn't respond, the
        next try is the next save, which takes the lines: trying at each step would stall the training.
        """
        if not row.evaluation and self.lines and self.lines[-1]["step"] == row.step:
            self.lines[-1][LOGGED] = row.values
        self._held.append(row)
        if self._wandb and self._bucket_answers:
            started = time.monotonic()
            try:
                self._write()
            except NotusError as error:
                self._bucket_answers = False
                logger.warning("the metrics are not in the bucket yet: %s", error.message)
            self._saver.count_stall(time.monotonic() - started)
        return self._shown() if self._bucket_answers else []

    def flush(self) -> list[Row]:
        """Write everything to the bucket at the end of the training; returns the rows that the trackers still lack."""
        self._write()
        self._saver.undelivered = []
        return self._shown()

    def _shown(self) -> list[Row]:
        rows, self._held = self._held, []
        return rows

    def _write(self) -> None:
        """Write the lines, including those of a save in flight, which may fail."""
        write_metrics(self._store, self._attempt, self._rank, [*self._saver.undelivered, *self.lines])
        self.lines = []


def _non_finite(losses: list[float], grad_norm: float) -> str:
    """What isn't finite, or ''. The gradient's norm is the same on all ranks; a loss may be NaN on only one."""
    bad = next((loss for loss in losses if not math.isfinite(loss)), None)
    if bad is not None:
        return f"the loss is {bad}"
    return "" if math.isfinite(grad_norm) else f"the gradient's norm is {grad_norm}"


def _peak_memory_gib() -> float:
    """Peak memory of this rank so far: on its GPU if it has one, else on the host."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
