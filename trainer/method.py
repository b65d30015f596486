"""What every training method's trainer has, whatever its loss: saving, metrics and export are typed on this.

DPO is the first: `trainer.training.dpo_trainer`. A trainer of TRL's has most of it by itself; what it has to add is
listed first. docs/how-to/add-a-training-method.md goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from transformers import TrainerState

from trainer.runtime.attempt_dir import Phase


class MethodTrainer(Protocol):
    """A `transformers.Trainer` whose state lives in `checkpoints`."""

    # --- what a method adds to its TRL trainer --------------------------------------------------------

    resume: dict[str, Any] | None
    """The restored state trees by name, from the restore until the first step."""
    save_state: Callable[[], None]
    """Makes the state of this moment durable. Collective."""
    announce: Callable[[Phase], None]
    """Tells what this rank is doing."""
    more_figures: Callable[[], dict[str, float]]
    """What a log line has beside the method's own figures."""
    on_logged: Callable[[dict[str, Any]], None]
    """Called with each log line of the training."""
    micro_losses: list[torch.Tensor]
    """The loss of each micro-step since the last optimizer step, on this rank."""
    grad_norm: float
    """Of the newest step, over all ranks, before clipping."""

    @property
    def rewards(self) -> Mapping[str, list[float]]:
        """The method's own figures of each micro-step since the last log, by name."""

    # --- what TRL's trainers have ---------------------------------------------------------------------

    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any
    state: TrainerState
    train_dataset: Any
    _metrics: dict[str, Any]
    _total_train_tokens: int
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _tr_loss: torch.Tensor

    def store_flos(self) -> None:
        """Adds up the floating-point operations of all ranks, in `state`. Collective."""

    def save_model(self, output_dir: str) -> None:
        """Writes the weights, gathered on rank 0. Collective."""

    def _get_learning_rate(self) -> float: ...
