"""Decides, on all ranks together, when to save and when to stop: at each step and each batch of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.checkpointing.save_policy import Moment, save_reason
from trainer.config.recipe import Saves
from trainer.runtime.stop_flag import StopRequest

if TYPE_CHECKING:
    from trainer.checkpointing.rank_checkpointer import RankCheckpointer
    from trainer.method import TrainingHooks


class EvaluationStopped(Exception):
    """A stop was requested during an evaluation. Raised on every rank at the same batch."""


@dataclass
class SaveDecision:
    """What all ranks have decided at the newest step, for the following save."""

    reason: str = "interval"
    stopping: bool = False
    evaluation_due: bool = False


class SaveCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types that mypy follows here
    """Turns `save_reason` into the Trainer's control flags, and passes its events to the hooks.

    A state is saved *before* an evaluation that is due, and records that (`evaluation_due`): a run that is stopped
    during the evaluation loses no step, and the attempt that resumes evaluates first. Evaluations leave the generators
    unchanged (`NotusDPOTrainer._evaluate`), so neither order changes the training.
    """

    def __init__(
        self,
        saves: Saves,
        stop: StopRequest,
        checkpointer: RankCheckpointer,
        hooks: TrainingHooks,
        decision: SaveDecision,
    ) -> None:
        """`decision` is written here, and read when saving."""
        self._saves = saves
        self._stop = stop
        self._checkpointer = checkpointer
        self._hooks = hooks
        self._decision = decision
        self._saved_at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hooks.on_train_begin()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._hooks.on_step_begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._hooks.on_step_end(state)
        epoch_ended = float(state.epoch or 0.0).is_integer()
        by_epoch = args.eval_strategy == IntervalStrategy.EPOCH
        self._decision.evaluation_due = control.should_evaluate or (by_epoch and epoch_ended)
        moment = self._agreed_moment(state, args.device, epoch_ended=epoch_ended)
        if moment.stopping:
            self._stop_now(control)
        if reason := save_reason(self._saves, moment):
            self._decision.reason = reason
            control.should_save = True
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stopping = torch.tensor(float(self._stop.pending()), device=args.device)
        dist.all_reduce(stopping, op=dist.ReduceOp.MAX)
        if stopping.item():
            self._stop_now(control)
            raise EvaluationStopped

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._decision.stopping:  # the Trainer also calls this when it stops; the next attempt evaluates
            control.should_save = control.should_evaluate = control.should_log = False
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._hooks.on_evaluated(state, kwargs.get("metrics") or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()

    def _stop_now(self, control: TrainerControl) -> None:
        self._decision.stopping = True
        self._decision.reason = "stop"
        control.should_training_stop = True
        control.should_evaluate = False

    def _agreed_moment(self, state: TrainerState, device: torch.device, *, epoch_ended: bool) -> Moment:
        """The moment, the same on all ranks, although their clocks and signals differ."""
        minutes, interval = (time.monotonic() - self._saved_at) / 60, self._checkpointer.interval_minutes()
        over = interval is not None and minutes >= interval
        pending = self._checkpointer.saver.poll()
        mine = [float(flag) for flag in (self._stop.pending(), over, pending.busy, pending.failed)]
        agreed = torch.tensor(mine, device=device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        stopping, over, busy, failed = (bool(flag) for flag in agreed.tolist())
        if failed:
            self._checkpointer.saver.resolve_failure()
        return Moment(
            step=state.global_step,
            epoch_ended=epoch_ended,
            evaluation_due=self._decision.evaluation_due,
            finished=state.global_step >= state.max_steps,
            stopping=stopping,
            interval_over=over,
            busy=busy and not failed,
        )
