"""When to save and when to stop, decided once a step by all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.keeper import Pending
from trainer.recipe import Saves
from trainer.saving import Moment, save_reason
from trainer.stop import StopRequest


class Rhythm(TrainerCallback):  # type: ignore[misc]  # transformers has no types that mypy follows here
    """Turns `save_reason` into the Trainer's control flags.

    At the last step of an epoch the save waits for `on_epoch_end`: the evaluation comes first and draws from the random
    generators, so a state saved before it would resume with other dropout masks.
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
        poll: Callable[[], Pending],
        on_failed_save: Callable[[], None],
    ) -> None:
        self._saves = saves
        self._stop = stop
        self._device = device
        self._on_begin = on_begin
        self._on_step_begin = on_step_begin
        self._on_step_end = on_step_end
        self._poll = poll
        self._on_failed_save = on_failed_save
        self._saved_at = time.monotonic()
        self._moment = Moment(0, False, False, False, 0.0)
        self.reason = "interval"
        self.stopping = False

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
        self._moment = self._agreed_moment(state)
        self.stopping = self._moment.stopping
        if self.stopping:
            control.should_training_stop = True
        if not self._moment.epoch_ended:
            self._request(control)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._moment.epoch_ended:
            self._request(control)
        elif self._moment.stopping:  # the Trainer also comes here when it stops in mid-epoch: no evaluation is due
            control.should_save = control.should_evaluate = control.should_log = False
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_at = time.monotonic()

    def _request(self, control: TrainerControl) -> None:
        if reason := save_reason(self._saves, self._moment):
            self.reason = reason
            control.should_save = True

    def _agreed_moment(self, state: TrainerState) -> Moment:
        """The same on all ranks: clocks and signals differ between them."""
        minutes = (time.monotonic() - self._saved_at) / 60
        pending = self._poll()
        mine = [float(self._stop.pending()), minutes, float(pending.busy), float(pending.failed)]
        agreed = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        stopping, minutes, busy, failed = agreed.tolist()
        if failed:
            self._on_failed_save()
        return Moment(
            step=state.global_step,
            epoch_ended=float(state.epoch or 0.0).is_integer(),
            finished=state.global_step >= state.max_steps,
            stopping=bool(stopping),
            minutes_since_save=minutes,
            busy=bool(busy) and not failed,
        )
