"""DeepSpeed's layout of a ZeRO-3 state, without torch or DeepSpeed.

DeepSpeed 0.19.8 stage 3 cuts every parameter of `n` elements into `ceil(n / world size)` per rank (the last one padded)
and concatenates the pieces of a sub-group in one flat fp32 tensor per rank. The order is that of `param_shapes`, which
each rank's checkpoint has; the optimizer's tensors (`square_avg`, `exp_avg`) have the same layout.
(`zero_to_fp32.py`, the recovery script that DeepSpeed ships, reads its own files the same way.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from checkpoints.errors import UserError

Shapes = dict[str, tuple[int, ...]]
"""Parameter name -> shape, in the order of the flat tensor."""
DEFAULT_SUB_GROUP_SIZE = 1_000_000_000
_RANK_IN_NAME = re.compile(r"(?<=zero_pp_rank_)\d+(?=_mp_rank_)")


class Partition(NamedTuple):
    """Where a parameter is in each rank's flat tensor of its sub-group."""

    name: str
    shape: tuple[int, ...]
    group: int
    offset: int
    length: int
    """Elements per rank, including padding."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def partition_length(shape: tuple[int, ...], world_size: int) -> int:
    """Elements of a parameter that each rank holds, including padding."""
    return math.ceil(math.prod(shape) / world_size)


def partition_map(param_shapes: list[Shapes], world_size: int) -> list[Partition]:
    """The layout of all parameters, in order; one entry of `param_shapes` is one sub-group."""
    found = []
    for group, shapes in enumerate(param_shapes):
        offset = 0
        for name, shape in shapes.items():
            length = partition_length(shape, world_size)
            found.append(Partition(name, tuple(shape), group, offset, length))
            offset += length
    return found


def flat_lengths(param_shapes: list[Shapes], world_size: int) -> list[int]:
    """Elements of each sub-group's flat tensor, on every rank."""
    return [sum(partition_length(shape, world_size) for shape in shapes.values()) for shapes in param_shapes]


def split_into_sub_groups(shapes: Shapes, world_size: int, sub_group_size: int) -> list[Shapes]:
    """The sub-groups of one param group: a new one begins when a rank's part has reached `sub_group_size` elements.

    They depend on the world size: a 7B model is one sub-group on 8 GPUs and two on 4.
    """
    if sum(partition_length(shape, world_size) for shape in shapes.values()) <= sub_group_size:
        return [shapes]
    found: list[Shapes] = []
    current: Shapes = {}
    size = 0
    for name, shape in shapes.items():
        current[name] = shape
        size += partition_length(shape, world_size)
        if size >= sub_group_size:
            found.append(current)
            current, size = {}, 0
    return [*found, current] if current else found


class RankState:
    """The ZeRO-3 files among one rank's state trees.

    Raises:
        UserError: there are none, or this version doesn't know their layout.
    """

    def __init__(self, trees: Mapping[str, Any], world_size: int) -> None:
        self.optimizer_file, optimizer_tree = _one(trees, "_optim_states.pt")
        self.model_file, self.model = _one(trees, "_model_states.pt")
        self.optimizer = optimizer_tree["optimizer_state_dict"]
        self.inner: dict[str, Any] = self.optimizer["optimizer_state_dict"]
        """The state dict of the torch optimizer: one parameter per sub-group."""
        self.flats: list[Any] = self.optimizer["fp32_flat_groups"]
        self.param_shapes: list[Shapes] = [
            {name: tuple(shape) for name, shape in shapes.items()} for shapes in self.model["param_shapes"]
        ]
        zero = optimizer_tree.get("ds_config", {}).get("zero_optimization", {})
        self.sub_group_size = int(zero.get("sub_group_size", DEFAULT_SUB_GROUP_SIZE))
        self.lengths = flat_lengths(self.param_shapes, world_size)
        for group, (flat, length) in enumerate(zip(self.flats, self.lengths, strict=True)):
            if tuple(flat.shape) != (length,):
                raise UserError(
                    f"the partition of sub-group {group} has {tuple(flat.shape)} elements, {length} expected",
                    "this version does not know the layout of this checkpoint",
                )

    @property
    def groups(self) -> list[list[int]]:
        """The sub-groups of each param group of the optimizer."""
        return [list(group["params"]) for group in self.inner["param_groups"]]

    def slots(self, group: int) -> Iterator[tuple[str, Any]]:
        """The tensors of a sub-group that are cut like the parameters, by name; '' is the fp32 master."""
        yield "", self.flats[group]
        for key, value in self.inner["state"].get(group, {}).items():
            if tuple(getattr(value, "shape", ())) == (self.lengths[group],):
                yield key, value

    def frozen(self) -> dict[str, Any]:
        """Pieces of the frozen parameters by name, if they were saved."""
        found: dict[str, Any] | None = self.model.get("frozen_param_fragments")
        return found or {}


def rename_rank(file: str, rank: int) -> str:
    """The name of the same file for another rank."""
    return _RANK_IN_NAME.sub(str(rank), file)


def has_zero3_state(trees: Mapping[str, Any]) -> bool:
    """Did DeepSpeed save one of these trees?"""
    return any(name.endswith("_optim_states.pt") for name in trees)


def _one(trees: Mapping[str, Any], ending: str) -> tuple[str, Any]:
    names = [name for name in trees if name.endswith(ending)]
    if len(names) != 1:
        raise UserError(
            "this checkpoint has no ZeRO-3 state", "LoRA runs are exported by the trainer, into final/ of the bucket"
        )
    return names[0], trees[names[0]]
