"""Gathers whole tensors from ZeRO-3 partitions (see `checkpoints.snapshot.zero3_layout`), without torch or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from checkpoints.restore.shard_restore import RestoredShard
from checkpoints.snapshot.zero3_layout import Partition, RankState, partition_map

Fp32 = npt.NDArray[np.float32]


class Zero3State:
    """The fp32 state of a ZeRO-3 checkpoint, gathered one parameter at a time."""

    def __init__(self, shards: list[RestoredShard]) -> None:
        self._ranks = [RankState(shard.trees(), len(shards)) for shard in shards]
        self.partitions = partition_map(self._ranks[0].param_shapes, len(shards))

    def tensors(self, slot: str = "") -> Iterator[tuple[str, Fp32]]:
        """Yield each parameter's whole fp32 master weights by name, or one tensor of its optimizer state.

        `slot` as in `RankState.slots`: '' or `square_avg`, `exp_avg`, ...
        """
        for part in self.partitions:
            flats = [np.asarray(dict(rank.slots(part.group))[slot]) for rank in self._ranks]
            yield part.name, gather_partition(part, flats)


def gather_partition(part: Partition, flats: list[npt.NDArray[Any]]) -> Fp32:
    """One parameter from all ranks' flat tensors of its sub-group."""
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
