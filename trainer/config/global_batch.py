"""The global batch is part of what a run computes: any number of processes has to make up the same one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from checkpoints.errors import NotExact
from trainer.config.recipe import Recipe


class Batch(NamedTuple):
    """How many pairs go into an optimizer step, and how the processes share them."""

    total: int
    per_device: int
    accumulation: int


def fit_batch(total: int, *, world_size: int, largest: int) -> Batch:
    """Share `total` pairs per step between `world_size` processes, at most `largest` per micro-step of each.

    Each step gets the same pairs whatever the world size: accelerate deals micro-batches in order. Only if the rows
    don't fill an epoch's last step does it fill that step with other pairs.
    Raises `NotExact`, naming the numbers of processes that work.
    """
    each, rest = divmod(total, world_size)
    if rest:
        fitting = [count for count in range(1, total + 1) if total % count == 0]
        nearest = sorted(sorted(fitting, key=lambda count: abs(count - world_size))[:4])
        raise NotExact(
            f"the run has {total} pairs in each step, and {world_size} processes can't share them evenly",
            f"use {', '.join(map(str, nearest))} processes (GPUs), or start a new run with another --name",
        )
    per_device = next(size for size in range(min(largest, each), 0, -1) if each % size == 0)
    return Batch(total, per_device, each // per_device)


def batch_of_run(saved: Mapping[str, Any] | None, recipe: Recipe, world_size: int) -> Batch:
    """The batch that an attempt with `world_size` processes has to use.

    It is the run's, from the fingerprint of its checkpoint, or for a new run (None) the recipe's.
    """
    training = recipe.training
    total = _saved_total(saved) or training.per_device_batch * training.accumulation * world_size
    return fit_batch(total, world_size=world_size, largest=training.per_device_batch)


def planned_steps(recipe: Recipe, rows: int, world_size: int) -> int:
    """Optimizer steps of a new run over `rows` training rows, as transformers' Trainer counts them.

    Accelerate pads the last micro-step of each process, and an epoch's last step may have fewer micro-steps.
    """
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    each = math.ceil(math.ceil(rows / training.per_device_batch) / world_size)
    return training.epochs * max(1, math.ceil(each / training.accumulation))


def _saved_total(saved: Mapping[str, Any] | None) -> int | None:
    if saved is None:
        return None
    total = saved.get("global_batch")
    if not isinstance(total, int):
        raise NotExact(
            "the checkpoint of this run was not saved by this trainer",
            "choose another --name for this run",
        )
    return total
