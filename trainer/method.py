"""The interface of every training method's trainer, whatever its loss: saving, metrics and export depend on it.

DPO is the first: `trainer.training.dpo_trainer`. TRL's trainers have most of it already; what a method has to add comes
first. docs/how-to/add-a-training-method.md has the steps.

The calls during a training, in order:

    on_train_begin                          the state is restored, no step has been done
    for each step:
        on_step_begin
        on_step_end                         the optimizer has stepped; the ranks decide whether to save, stop, evaluate
        more_figures, on_logged             for a step that is logged
        save                                if the ranks decided so
        announce("evaluating"), on_evaluated    if an evaluation is due; the save comes first
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import TrainerState

from trainer.runtime.attempt_dir import Phase


class TrainingHooks(Protocol):
    """What a trainer calls while it trains. One implementation: `trainer.training.hooks.AttemptHooks`."""

    def announce(self, phase: Phase) -> None:
        """Report what this rank is doing."""

    def on_train_begin(self) -> None:
        """The state is restored and the optimizer exists."""

    def on_step_begin(self) -> None:
        """A step begins."""

    def on_step_end(self, state: TrainerState) -> None:
        """A step is done. Raises `UserError` if its loss or gradient isn't finite."""

    def more_figures(self) -> dict[str, float]:
        """Return what a log line has besides the method's own figures."""

    def on_logged(self, logs: dict[str, Any]) -> None:
        """Receive a log line of the training."""

    def on_evaluated(self, state: TrainerState, metrics: dict[str, float]) -> None:
        """Receive the results of an evaluation. Collective."""

    def save(self) -> None:
        """Make the current state durable. Collective."""


class MethodTrainer(Protocol):
    """A `transformers.Trainer` whose state lives in `checkpoints`."""

    # --- what a method adds to its TRL trainer --------------------------------------------------------

    resume: dict[str, Any] | None
    """The restored state trees by name, from the restore until the first step."""
    hooks: TrainingHooks
    """Set once the trainer is built, before it trains."""
    micro_losses: list[torch.Tensor]
    """The loss of each micro-step since the last optimizer step, on this rank."""
    grad_norm: float
    """The newest step's, over all ranks, before clipping."""

    @property
    def rewards(self) -> Mapping[str, list[float]]:
        """The method's own figures for each micro-step since the last log, by name."""

    # --- what TRL's trainers have ---------------------------------------------------------------------

    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any
    state: TrainerState
    train_dataset: Any
    aux_loss_enabled: bool
    """Whether the router's loss of a mixture of experts is added."""
    _metrics: dict[str, Any]
    _total_train_tokens: int
    _total_loss_scalar: float
    _globalstep_last_logged: int
    _tr_loss: torch.Tensor

    def store_flos(self) -> None:
        """Add up the floating-point operations of all ranks, in `state`. Collective."""

    def save_model(self, output_dir: str) -> None:
        """Write the weights, gathered on rank 0. Collective."""

    def _get_learning_rate(self) -> float: ...
