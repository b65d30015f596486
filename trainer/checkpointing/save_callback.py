"""When to save and when to stop, decided by all ranks together: at each step and at each batch of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.checkpointing.distributed_saver import Pending
from trainer.checkpointing.save_policy import Moment, save_reason
from trainer.config.recipe import Saves
from trainer.runtime.stop_flag import StopRequest


class EvaluationStopped(Exception):
    """A stop was asked for in the middle of an evaluation. Raised on every rank at the same batch."""


class Rhythm(TrainerCallback):  # type: ignore[misc]  # transformers has no types that mypy follows here
    """Turns `save_reason` into the Trainer's control flags.

    A state is saved *before* an evaluation that is due, and says so (`evaluation_due`): a run that is stopped in the
    evaluation loses no step, and the attempt that resumes evaluates first. Evaluations leave the random generators as
    they found them (`NotusDPOTrainer._evaluate`), so neither order changes the training.
    """

    def __init__(
        self,
        saves: Saves,
        stop: StopRequest,
        *,
        device: torch.device,
        on_begin: Callable[[], None],
        on_step_begin: Callable[[], None],
        on_step_end: Callable[[TrainerState], None],
        on_evaluated: Callable[[TrainerState, dict[str, float]], None],
        interval_minutes: Callable[[], float | None],
        poll: Callable[[], Pending],
        on_failed_save: Callable[[], None],
    ) -> None:
        self._saves = saves
        self._stop = stop
        self._device = device
        self._on_begin = on_begin
        self._on_step_begin = on_step_begin
        self._on_step_end = on_step_end
        self._on_evaluated = on_evaluated
        self._interval_minutes = interval_minutes
        self._poll = poll
        self._on_failed_save = on_failed_save
        self._saved_at = time.monotonic()
        self.reason = "interval"
        self.stopping = False
        self.evaluation_due = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._on_begin()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._on_step_begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._on_step_end(state)
        epoch_ended = float(state.epoch or 0.0).is_integer()
        by_epoch = args.eval_strategy == IntervalStrategy.EPOCH
        self.evaluation_due = control.should_evaluate or (by_epoch and epoch_ended)
        moment = self._agreed_moment(state, epoch_ended=epoch_ended)
        if moment.stopping:
            self._stop_now(control)
        if reason := save_reason(self._saves, moment):
            self.reason = reason
            control.should_save = True
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stopping = torch.tensor(float(self._stop.pending()), device=self._device)
        dist.all_reduce(stopping, op=dist.ReduceOp.MAX)
        if stopping.item():
            self._stop_now(control)
            raise EvaluationStopped

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.stopping:  # the Trainer also comes here when it stops; the next attempt evaluates
            control.should_save = control.should_evaluate = control.should_log = False
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._on_evaluated(state, kwargs.get("metrics") or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()

    def _stop_now(self, control: TrainerControl) -> None:
        self.stopping = True
        self.reason = "stop"
        control.should_training_stop = True
        control.should_evaluate = False

    def _agreed_moment(self, state: TrainerState, *, epoch_ended: bool) -> Moment:
        """The same on all ranks: clocks and signals differ between them."""
        minutes, interval = (time.monotonic() - self._saved_at) / 60, self._interval_minutes()
        over = interval is not None and minutes >= interval
        pending = self._poll()
        mine = [float(flag) for flag in (self._stop.pending(), over, pending.busy, pending.failed)]
        agreed = torch.tensor(mine, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        stopping, over, busy, failed = (bool(flag) for flag in agreed.tolist())
        if failed:
            self._on_failed_save()
        return Moment(
            step=state.global_step,
            epoch_ended=epoch_ended,
            evaluation_due=self.evaluation_due,
            finished=state.global_step >= state.max_steps,
            stopping=stopping,
            interval_over=over,
            busy=busy and not failed,
        )
