"""Whole tensors out of ZeRO-3 partitions, without torch, without DeepSpeed, without a GPU.

DeepSpeed 0.19.8 stage 3 cuts every parameter of `n` elements into `ceil(n / world size)` a rank (the last one padded)
and lays the pieces of a sub-group out one after the other in one flat fp32 tensor a rank. The order is that of
`param_shapes`, which each rank's checkpoint has. (`zero_to_fp32.py`, the recovery script that DeepSpeed ships, reads
its own files the same way.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from checkpoints.errors import UserError
from checkpoints.restore import RestoredShard

Fp32 = npt.NDArray[np.float32]


class Partition(NamedTuple):
    """Where a parameter lies in every rank's flat tensor of its group."""

    name: str
    shape: tuple[int, ...]
    group: int
    offset: int
    length: int
    """Elements a rank, padding included."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def partition_map(param_shapes: list[dict[str, tuple[int, ...]]], world_size: int) -> list[Partition]:
    """The layout of all parameters, in order."""
    found = []
    for group, shapes in enumerate(param_shapes):
        offset = 0
        for name, shape in shapes.items():
            length = math.ceil(math.prod(shape) / world_size)
            found.append(Partition(name, tuple(shape), group, offset, length))
            offset += length
    return found


class Zero3State:
    """The fp32 state of a ZeRO-3 checkpoint, gathered a parameter at a time."""

    def __init__(self, shards: list[RestoredShard]) -> None:
        trees = [shard.trees() for shard in shards]
        self._optimizers = [_one(tree, "_optim_states.pt")["optimizer_state_dict"] for tree in trees]
        shapes = _one(trees[0], "_model_states.pt")["param_shapes"]
        self.partitions = partition_map(shapes, len(shards))
        self._check_lengths()

    def masters(self) -> Iterator[tuple[str, Fp32]]:
        """Yield every parameter's fp32 master weights by name, whole."""
        flats = [[np.asarray(flat) for flat in state["fp32_flat_groups"]] for state in self._optimizers]
        for part in self.partitions:
            yield part.name, gather_partition(part, [flat[part.group] for flat in flats])

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Fp32]]:
        """Yield one tensor of the optimizer's state of every parameter (`square_avg`, `exp_avg`), whole."""
        states = [state["optimizer_state_dict"]["state"] for state in self._optimizers]
        for part in self.partitions:
            yield part.name, gather_partition(part, [np.asarray(state[part.group][key]) for state in states])

    def _check_lengths(self) -> None:
        for group in {part.group for part in self.partitions}:
            expected = sum(part.length for part in self.partitions if part.group == group)
            for rank, state in enumerate(self._optimizers):
                actual = int(np.asarray(state["fp32_flat_groups"][group]).size)
                if actual != expected:
                    raise UserError(
                        f"the partitions of rank {rank} have {actual} elements in group {group}, {expected} expected",
                        "this checkpoint is laid out in a way that this version does not know",
                    )


def gather_partition(part: Partition, flats: list[npt.NDArray[Any]]) -> Fp32:
    """One parameter from all ranks' flat tensors of its group."""
    pieces = [flat[part.offset : part.offset + part.length] for flat in flats]
    whole: Fp32 = np.concatenate(pieces)[: part.numel].reshape(part.shape)
    return whole


def to_bfloat16(values: Fp32) -> npt.NDArray[np.uint16]:
    """Round to nearest even, as torch does; NaN stays NaN. The result's bits are bfloat16."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(values)
    result: npt.NDArray[np.uint16] = np.where(nan, np.uint32(0x7FC0), rounded).astype(np.uint16)
    return result


def _one(tree: dict[str, Any], ending: str) -> Any:
    names = [name for name in tree if name.endswith(ending)]
    if len(names) != 1:
        raise UserError(
            "this checkpoint has no ZeRO-3 state", "LoRA runs are exported by the trainer, into final/ of the bucket"
        )
    return tree[names[0]]
