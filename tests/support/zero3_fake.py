"""State trees as DeepSpeed 0.19.8 would save them, of any shapes, for any world size; made straight from its rules."""

from __future__ import annotations

import math
from typing import Any

import torch

ParamGroups = list[dict[str, tuple[int, ...]]]
SLOTS = ("", "exp_avg", "exp_avg_sq")


def random_values(groups: ParamGroups, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Slot -> parameter -> values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        slot: {name: torch.randn(shape, generator=generator) for group in groups for name, shape in group.items()}
        for slot in SLOTS
    }


def rank_trees(
    groups: ParamGroups,
    values: dict[str, dict[str, torch.Tensor]],
    rank: int,
    world_size: int,
    sub_group_size: int,
    frozen: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """What one rank saves."""
    sub_groups, members = _sub_groups(groups, world_size, sub_group_size)
    flats = {
        slot: [torch.cat([part(values[slot][name], rank, world_size) for name in names]) for names in sub_groups]
        for slot in SLOTS
    }
    state = {
        index: {
            "step": torch.tensor(float(7)),
            **{slot: flats[slot][index] for slot in SLOTS if slot},
        }
        for index in range(len(sub_groups))
    }
    shapes = {name: torch.Size(shape) for group in groups for name, shape in group.items()}
    return {
        f"deepspeed/global_step7/zero_pp_rank_{rank}_mp_rank_00_model_states.pt": {
            "module": {name: torch.empty(0, dtype=torch.bfloat16) for name in shapes},
            "param_shapes": [{name: shapes[name] for name in names} for names in sub_groups],
            "dp_world_size": world_size,
            "global_steps": 7,
            "frozen_param_shapes": {name: value.shape for name, value in frozen.items()},
            "frozen_param_fragments": {name: part(value, rank, world_size) for name, value in frozen.items()},
        },
        f"deepspeed/global_step7/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt": {
            "optimizer_state_dict": {
                "zero_stage": 3,
                "partition_count": world_size,
                "optimizer_state_dict": {
                    "state": state,
                    "param_groups": [{"lr": 0.1 * group, "params": index} for group, index in enumerate(members)],
                },
                "fp32_flat_groups": flats[""],
            },
            "ds_config": {"zero_optimization": {"sub_group_size": sub_group_size}},
        },
    }


def part(value: torch.Tensor, rank: int, world_size: int) -> torch.Tensor:
    """A rank's part of a parameter, padded with zeros."""
    length = math.ceil(value.numel() / world_size)
    flat = torch.zeros(length * world_size, dtype=value.dtype)
    flat[: value.numel()] = value.reshape(-1)
    return flat[rank * length : (rank + 1) * length]


def _sub_groups(groups: ParamGroups, world_size: int, limit: int) -> tuple[list[list[str]], list[list[int]]]:
    """Names of each sub-group, and the sub-groups of each param group (stage3.py, _create_fp16_sub_groups)."""
    found: list[list[str]] = []
    members: list[list[int]] = []
    for group in groups:
        size, names, first = 0, [], len(found)
        sizes = {name: math.ceil(math.prod(shape) / world_size) for name, shape in group.items()}
        if limit >= sum(sizes.values()):
            found.append(list(group))
        else:
            for name in group:
                names.append(name)
                size += sizes[name]
                if size >= limit or name == list(group)[-1]:
                    found.append(names)
                    size, names = 0, []
        members.append(list(range(first, len(found))))
    return found, members
