"""TRL's DPOTrainer with our saving and resuming in the place of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from trl import DPOTrainer

from trainer import state as states
from trainer.rhythm import EvaluationStopped


class NotusDPOTrainer(DPOTrainer):  # type: ignore[misc]  # trl has no types
    """DPO whose state lives in `checkpoints`.

    `resume` holds the restored trees; the overrides below put them where the Trainer would read pickled files.
    """

    resume: dict[str, Any] | None = None
    save_state: Callable[[], None]
    """Makes the state of this moment durable."""
    announce: Callable[[str], None]
    """Says what this rank is doing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.micro_losses: list[torch.Tensor] = []
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # `trainer.data` has formatted, cut and tokenised it

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(*args, **kwargs)
        if self.model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self.micro_losses.append(loss.detach())
        return result

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without touching the training: save first if a save is wanted, and put the generators back.

        An evaluation draws from torch's generator; left alone, a run that evaluates after a resume would go on with
        other dropout masks than one that did before.
        """
        if self.control.should_save:
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.announce("evaluating")
        generators = states.capture_rng()
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            # The save before this evaluation is skipped while an upload is on its way: make up for it.
            self._metrics["eval"].clear()
            states.restore_rng(generators)
            self._save_checkpoint(self.model, None)
            return {}
        finally:
            states.restore_rng(generators)
            self.announce("training")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer looks at max_steps and at a stop only after a step: resumed at its end in mid-epoch, or stopped in
        # the evaluation that a resume makes up for, it would do one step more.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Called without DeepSpeed only, before the model is wrapped: the LoRA path.
        states.load_trainable_state(self.model, self._resumed("adapter"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        self.lr_scheduler.load_state_dict(self._resumed("scheduler"))
        if not self.is_deepspeed_enabled:
            self.optimizer.load_state_dict(self._resumed("optimizer"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        pass  # bf16 has no gradient scaler

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states.restore_rng(self._resumed("rng"))

    def _resumed(self, name: str) -> Any:
        assert self.resume is not None
        return self.resume[name]
