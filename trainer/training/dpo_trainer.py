"""TRL's DPOTrainer with our own saving and resuming."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import torch
import trl.trainer.dpo_trainer
from torch.utils.data import get_worker_info
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed

from trainer.checkpointing import training_state as states
from trainer.checkpointing.save_callback import EvaluationStopped
from trainer.devices.collectives import from_rank_0, gather
from trainer.hub.push import SHARD
from trainer.method import TrainingHooks
from trainer.training.reference_log_probs import ReferenceCache, Values, compute

logger = logging.getLogger(__name__)

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Column names in TRL's collator and loss."""


class SigtermSafeCollator:
    """A collator whose loader processes survive the SIGTERM that a machine sends to every process on shutdown.

    A rank treats it as a request to save and stop, and still needs its batches for the current step.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        if get_worker_info() is not None:  # torch sets its own handler when it starts the process
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return self._collate(rows)


@contextlib.contextmanager
def _unhashed() -> Iterator[None]:
    """Keep TRL 1.16 from hashing all weights to name a cache that we replace.

    That would be 28 GB of float32 for a 7B model with LoRA, at 1.5 GB/s per core.
    """
    hash_module = trl.trainer.dpo_trainer.hash_module
    trl.trainer.dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        trl.trainer.dpo_trainer.hash_module = hash_module


class NotusDPOTrainer(DPOTrainer):  # type: ignore[misc]  # trl has no types
    """DPO whose state lives in `checkpoints`.

    `resume` holds the restored trees; the overrides below use them where the Trainer would read pickled files.
    """

    control: Any
    data_collator: Any
    _precompute_engine: Any
    resume: dict[str, Any] | None = None
    hooks: TrainingHooks
    """Set once the trainer is built, before it trains."""

    def __init__(
        self, *args: Any, reference: Callable[[datasets.Dataset, int], ReferenceCache] | None = None, **kwargs: Any
    ) -> None:
        """`reference` returns the cache for a data set and a batch size, if log-probabilities are precomputed."""
        self.micro_losses: list[torch.Tensor] = []
        self.grad_norm = 0.0
        """The newest step's, over all ranks, before clipping."""
        self._reference = reference
        with _unhashed():
            super().__init__(*args, **kwargs)
        self._release_precompute_engine()
        self.data_collator = SigtermSafeCollator(self.data_collator)

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """Read from the bucket, or compute and store there: the next machine wouldn't have TRL's own cache file."""
        assert self._reference is not None
        cache = self._reference(dataset, batch_size)
        generators = states.capture_rng()
        values = compute(
            cache,
            lambda rows: self._reference_logps(dataset, rows),
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            share=gather,
            first=from_rank_0,
            done=lambda rows: logger.info("reference log-probs of %s: %d of %d rows", name, rows, cache.rows),
        )
        states.restore_rng(generators)
        columns = dict(zip(REFERENCE_COLUMNS, values.T, strict=True))
        return datasets.concatenate_datasets([dataset, datasets.Dataset.from_dict(columns)], axis=1)

    def _release_precompute_engine(self) -> None:
        """Destroy the engine that TRL keeps for later data sets, with hooks on every module of the trained model."""
        if self._precompute_engine is not None:
            self._precompute_engine.destroy()
            self._precompute_engine = None

    def _reference_logps(self, dataset: datasets.Dataset, rows: range) -> Values:
        """Log-probabilities of these rows by the untrained model (adapters off). Collective under ZeRO-3."""
        model = self.model
        if self.is_deepspeed_enabled:
            # Built for the first batch that isn't in the cache: an attempt that finds all of them needs no engine.
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            model = self._precompute_engine
        batch = self.data_collator([dataset[row] for row in rows])
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        logps = self.compute_ref_log_probs(model, batch)
        values: Values = torch.stack(logps, dim=1).float().cpu().numpy()
        return values

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the inputs to the device, keeping the precision of precomputed log-probabilities.

        The Trainer casts all floating-point inputs to bf16 under DeepSpeed: a log-probability of -407.1 would become
        -408.
        """
        kept = {name: inputs[name] for name in REFERENCE_COLUMNS if name in inputs}
        rest = {name: value for name, value in inputs.items() if name not in kept}
        device = self.args.device
        return {**super()._prepare_inputs(rest), **{name: value.to(device) for name, value in kept.items()}}

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # `trainer.data.dataset` has formatted, cut and tokenized it

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(*args, **kwargs)
        if self.model.training:
            loss = result[0] if isinstance(result, tuple) else result
            self.micro_losses.append(loss.detach())
        return result

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.grad_norm = float(norm)
        return norm

    @property
    def rewards(self) -> dict[str, list[float]]:
        """TRL's figures for each micro-step since the last log, by name."""
        figures: dict[str, list[float]] = self._metrics["train"]
        return figures

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        of_steps = self.model.training and "loss" in logs  # neither an evaluation nor the summary at the end
        if of_steps:
            logs.update(self.hooks.more_figures())
        super().log(logs, *args, **kwargs)  # adds TRL's figures to `logs`
        if of_steps:
            self.hooks.on_logged(logs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without affecting training: save first if a save is due, and restore the generators.

        An evaluation draws from torch's generator; otherwise a run that evaluates after a resume would continue with
        other dropout masks than one that evaluated before.
        """
        if self.control.should_save:
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.hooks.announce("evaluating")
        generators = states.capture_rng()
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStopped:
            # The save before this evaluation is skipped if an upload is in flight: save now.
            self._metrics["eval"].clear()
            states.restore_rng(generators)
            self._save_checkpoint(self.model, None)
            return {}
        finally:
            states.restore_rng(generators)
            self.hooks.announce("training")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer checks max_steps and a stop only after a step: resumed at its last step in mid-epoch, or stopped
        # in the evaluation right after a resume, it would do one more step.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.hooks.save()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights for `save_model`, in shards: the Trainer's own method writes one file of up to 50 GB."""
        self.model.save_pretrained(output_dir, state_dict=state_dict, max_shard_size=SHARD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Called only without DeepSpeed, before the model is wrapped: the LoRA path.
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
