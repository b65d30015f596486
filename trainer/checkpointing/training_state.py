"""Captures everything that an exact resume needs from a Trainer as plain trees, and restores it.

trainer     TrainerState, on rank 0
scheduler   the learning-rate scheduler
rng         python, numpy, torch, cuda of this rank
counters    TRL's token count and metrics, the running loss sums
cursor      the position in the data order, and the order's identity
deepspeed/  what DeepSpeed saves: fp32 partitions, optimizer state, engine counters
recomputed  hashes of the weights that training computes with, which DeepSpeed recomputes from the fp32 partitions
adapter, optimizer    LoRA under DDP: the trainable weights and their optimizer, on rank 0
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from checkpoints.errors import NotExact
from checkpoints.snapshot.state_tree import Digest, digest

if TYPE_CHECKING:
    from trainer.checkpointing.deepspeed_engine import BucketEngine
    from trainer.method import MethodTrainer


def capture(
    trainer: MethodTrainer, engine: BucketEngine | None, scratch: Path, dataset: str, *, evaluation_due: bool
) -> dict[str, Any]:
    """The state of this rank after an optimizer step. Collective. Tensors are references, not copies.

    `evaluation_due`: the evaluation of this step comes after this state, so a resume has to do it.
    """
    trainer.store_flos()
    trees: dict[str, Any] = {
        "rng": capture_rng(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "counters": _capture_counters(trainer),
        "cursor": {**_capture_cursor(trainer, dataset), "evaluation_due": evaluation_due},
    }
    if trainer.args.process_index == 0:
        trees["trainer"] = json.loads(json.dumps(dataclasses.asdict(trainer.state)))
    if engine is not None:
        # Under LoRA the base model isn't part of the state: it is loaded again.
        lora = len(trainable_state(trainer.model)) < len(list(trainer.model.parameters()))
        trainer.model_wrapped.save_checkpoint(str(scratch), save_latest=False, exclude_frozen_parameters=lora)
        trees |= {f"deepspeed/{name}": tree for name, tree in engine.saved.items()}
        trees["recomputed"] = [Digest(weights) for weights in computed_weights(trainer)]
    elif trainer.args.process_index == 0:
        trees["adapter"] = trainable_state(trainer.model)
        trees["optimizer"] = trainer.optimizer.state_dict()
    return trees


def stage(trees: dict[str, Any], engine: BucketEngine | None, folder: Path) -> Path:
    """Make the folder for `Trainer.train(resume_from_checkpoint=...)`: JSON and, for DeepSpeed, stubs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(trees["trainer"]))
    if engine is not None:
        prefix = "deepspeed/"
        files = {name.removeprefix(prefix): tree for name, tree in trees.items() if name.startswith(prefix)}
        engine.stage(files, folder)
    return folder


def capture_rng() -> dict[str, Any]:
    """The random number generators of this process."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # libraries use the global generator
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Inverse of `capture_rng`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"].clone())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state["cuda"].clone())


def adapt_to_world_size(trees: dict[str, Any], saved_by: int) -> None:
    """Adapt trees of another world size to this rank, after `checkpoints.restore.reshard` has recut the partitions."""
    trees.pop("recomputed", None)  # the hashes are of the old partitions
    rank = dist.get_rank()
    if rank >= saved_by:  # this rank's generators weren't saved, and two ranks must not draw the same numbers
        trees["rng"] = _fresh_rng(trees["cursor"]["seed"] + 1_000_003 * rank + trees["cursor"]["step"])


def _fresh_rng(seed: int) -> dict[str, Any]:
    before = capture_rng()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    made = capture_rng()
    restore_rng(before)
    return made


def restore_counters(trainer: MethodTrainer, state: dict[str, Any]) -> None:
    """Restore what the Trainer resets at the start of `train()`.

    Otherwise the first log line after a resume averages over fewer steps than in an uninterrupted run, and the token
    count starts at zero.
    """
    trainer._total_train_tokens = state["num_tokens"]
    trainer._total_loss_scalar = state["total_loss"]
    trainer._globalstep_last_logged = state["last_logged_step"]
    trainer._tr_loss = state["running_loss"].clone().to(trainer.args.device)
    for mode, metrics in state["metrics"].items():
        trainer._metrics[mode] = defaultdict(list, {name: list(values) for name, values in metrics.items()})


def computed_weights(trainer: MethodTrainer) -> list[torch.Tensor]:
    """This rank's part of the weights for forward and backward (mostly bf16), one flat tensor per sub-group."""
    flats: list[torch.Tensor] = trainer.model_wrapped.optimizer.fp16_partitioned_groups_flat
    return flats


def check_recomputed(weights: Sequence[torch.Tensor], saved: Sequence[Any]) -> None:
    """Check that the weights, which aren't stored, equal the rounded fp32 partitions. Raises `NotExact`."""
    if [digest(tensor) for tensor in weights] != [bytes(hash_) for hash_ in saved]:
        raise NotExact(
            "the weights that DeepSpeed recomputed from the fp32 state differ from those used in training",
            "install the versions that the run was started with (see the fingerprint in `notus-ckpt show`), "
            "or start a new run with another --name",
        )


def check_cursor(trainer: MethodTrainer, state: dict[str, Any], dataset: str) -> None:
    """Refuse to resume with other data: the step number would point to other pairs. Raises `NotExact`."""
    mine = _capture_cursor(trainer, dataset)
    for name in ("dataset", "rows", "batch", "seed"):
        if mine[name] != state[name]:
            raise NotExact(
                f"the data order has changed since this run was saved: {name} was {state[name]}, is {mine[name]}",
                "give the run its old data set (pin dataset.revision), or start a new run with another --name",
            )


def trainable_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trainable_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Inverse of `trainable_state`; loads everything or nothing. Raises `NotExact`."""
    mine = trainable_state(model)
    if mine.keys() != state.keys():
        first = sorted(mine.keys() ^ state.keys())[0]
        raise NotExact(f"the saved adapter has other parameters than this model, first {first!r}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(state[name])


def _capture_counters(trainer: MethodTrainer) -> dict[str, Any]:
    return {
        "num_tokens": trainer._total_train_tokens,
        "total_loss": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "running_loss": trainer._tr_loss.clone(),  # it changes at the next micro-step, during the copy
        "metrics": {"train": dict(trainer._metrics["train"])},
    }


def _capture_cursor(trainer: MethodTrainer, dataset: str) -> dict[str, Any]:
    """The position in the data. Its order is a pure function of seed and epoch (accelerate's seedable sampler)."""
    arguments = trainer.args
    return {
        "step": trainer.state.global_step,
        "epoch": trainer.state.epoch,
        "dataset": dataset,
        "rows": len(trainer.train_dataset),
        "batch": arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps,
        "seed": arguments.data_seed or arguments.seed,
    }
