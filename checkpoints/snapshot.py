"""A consistent copy of a rank's state in host memory: the thing that is uploaded."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, NamedTuple, Protocol

from checkpoints.tree import Leaf, encode

ALIGNMENT_BYTES = 64  # of each tensor in the stream, so that any dtype can be viewed in place


class Buffer(Protocol):
    """Reused host memory (`checkpoints.shm.SharedBuffer`, or a HostBuffer within one process)."""

    def reserve(self, size_bytes: int) -> memoryview: ...


class HostBuffer:
    """Reused memory of this process, in huge pages where the kernel has some: their first touch costs a sixth."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def reserve(self, size_bytes: int) -> memoryview:
        """The first `size_bytes` bytes, grown if needed. Old contents may be lost when it grows."""
        if self._memory is None or len(self._memory) < size_bytes:
            # Views of the old memory keep it alive until they are gone.
            self._memory = mmap.mmap(-1, max(1, size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(self._memory)[:size_bytes]


class TensorSpec(NamedTuple):
    """Where a tensor lies in the stream; the manifest's `TensorRecord` without its hash."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Snapshot(NamedTuple):
    """State trees as JSON, and their tensors laid out in one stream. Valid until the buffer is used again."""

    trees: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    data: memoryview

    @classmethod
    def take(cls, trees: dict[str, Any], buffer: Buffer) -> Snapshot:
        """Copy `trees` (file name -> state tree, see `checkpoints.tree`) into `buffer`, now."""
        plan = Plan.of(trees)
        return plan.copy(buffer.reserve(plan.size_bytes))


class Plan(NamedTuple):
    """A snapshot that is still to be copied: small values are encoded, tensors are references."""

    trees: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    leaves: tuple[Leaf, ...]
    size_bytes: int

    @classmethod
    def of(cls, trees: dict[str, Any]) -> Plan:
        """Encode `trees` and lay their tensors out. Raises `TypeError` for what can't be stored."""
        leaves: list[Leaf] = []
        encoded = {name: encode(tree, name, leaves) for name, tree in trees.items()}
        specs, position = [], 0
        for leaf in leaves:
            specs.append(TensorSpec(leaf.name, leaf.kind, leaf.dtype, leaf.shape, position, leaf.size_bytes))
            position += padded(leaf.size_bytes)
        return cls(encoded, tuple(specs), tuple(leaves), position)

    def copy(self, target: memoryview) -> Snapshot:
        """Copy every tensor. Until this returns, none of them may change."""
        for leaf, spec in zip(self.leaves, self.tensors, strict=True):
            end = spec.offset + spec.size_bytes
            leaf.copy_to(target[spec.offset : end])
            padding = padded(spec.size_bytes) - spec.size_bytes
            target[end : end + padding] = bytes(padding)
        return Snapshot(self.trees, self.tensors, target)


def padded(size_bytes: int) -> int:
    """The room that a tensor takes in the stream."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
