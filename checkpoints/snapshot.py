"""A consistent copy of a rank's state in host memory: the thing that is uploaded."""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from checkpoints.manifest import TensorRecord
from checkpoints.tree import Leaf, encode

ALIGNMENT_BYTES = 64  # of each tensor in the stream, so that any dtype can be viewed in place


class HostBuffer:
    """Reused host memory. First touch of a fresh page costs about 15 times the copy itself (storage-facts), so the
    buffer is touched once, when it grows, and kept."""

    def __init__(self) -> None:
        self._memory: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def reserve(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """Return the first `size_bytes` bytes of the buffer, grown if needed. Its old contents may be lost."""
        if size_bytes > self._memory.size:
            rounded = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory = np.frombuffer(mmap.mmap(-1, rounded), dtype=np.uint8)
            self._memory[:: mmap.PAGESIZE] = 0
        return self._memory[:size_bytes]


class Snapshot(NamedTuple):
    """State trees as JSON and the bytes of their tensors. Valid until the buffer is used again."""

    trees: dict[str, Any]
    tensors: tuple[TensorRecord, ...]
    data: memoryview

    @classmethod
    def take(cls, trees: dict[str, Any], buffer: HostBuffer) -> Snapshot:
        """Copy `trees` (file name -> state tree, see `checkpoints.tree`) into `buffer`."""
        leaves: list[Leaf] = []
        encoded = {name: encode(tree, name, leaves) for name, tree in trees.items()}
        offsets, total = _layout(leaves)
        memory = buffer.reserve(total)
        records = []
        for leaf, offset in zip(leaves, offsets, strict=True):
            target = memory[offset : offset + leaf.array.nbytes]
            target[:] = leaf.array
            memory[offset + leaf.array.nbytes : offset + _padded(leaf.array.nbytes)] = 0
            records.append(
                TensorRecord(
                    name=leaf.name,
                    kind=leaf.kind,  # type: ignore[arg-type]  # checked by pydantic
                    dtype=leaf.dtype,
                    shape=leaf.shape,
                    offset=offset,
                    size_bytes=leaf.array.nbytes,
                    xxh3=xxhash.xxh3_128_hexdigest(target.data),
                )
            )
        return cls(encoded, tuple(records), memoryview(memory.data))


def _layout(leaves: list[Leaf]) -> tuple[list[int], int]:
    """Offsets of the leaves, each aligned, and the length of the stream."""
    offsets, position = [], 0
    for leaf in leaves:
        offsets.append(position)
        position += _padded(leaf.array.nbytes)
    return offsets, position


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
