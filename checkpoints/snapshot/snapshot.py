"""A consistent copy of a rank's state in host memory, which is then uploaded.

Large tensors are copied in the background, so they must not change meanwhile. A change is detected by torch's own
counter (`Tensor._version`), and the save fails. Changes through `.data` aren't counted. For a tensor in host memory the
copy is therefore compared with samples taken when the save began, which finds changes to the whole tensor; on a GPU the
samples would have to wait for it, and aren't taken. What a forward pass changes (running means, histories) is small
and copied immediately. So are numpy arrays and inference tensors, whose changes are not counted.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from checkpoints.errors import TornState
from checkpoints.snapshot.state_tree import Digest, Leaf, encode

AT_ONCE_BYTES = 64 << 10
"""Up to this size a tensor is copied when the save begins, not in the background."""

PIECE_BYTES = 4 << 10
"""Size of one sample."""
ALIGNMENT_BYTES = 64  # of each tensor in the stream, so that any dtype can be viewed in place


class Buffer(Protocol):
    """Reused host memory (`checkpoints.snapshot.shared_memory.SharedBuffer`, or a HostBuffer within one process)."""

    def reserve(self, size_bytes: int) -> memoryview: ...


class HostBuffer:
    """Reused memory of this process, in huge pages if the kernel has them: their first touch costs a sixth."""

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
    """Where a tensor is in the stream; the manifest's `TensorRecord` without its hash."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Snapshot(NamedTuple):
    """State trees as JSON, and their tensors in one stream. Valid until the buffer is reused."""

    trees: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    data: memoryview

    @classmethod
    def take(cls, trees: dict[str, Any], buffer: Buffer) -> Snapshot:
        """Copy `trees` (file name -> state tree, see `checkpoints.snapshot.state_tree`) into `buffer`, now."""
        plan = Plan.of(trees)
        return plan.copy(buffer.reserve(plan.size_bytes))


class Plan(NamedTuple):
    """A snapshot before the copy: small values are encoded, tensors are references."""

    trees: dict[str, Any]
    tensors: tuple[TensorSpec, ...]
    leaves: tuple[Leaf, ...]
    size_bytes: int
    versions: tuple[int | None, ...] = ()
    """How often each tensor had been changed when the save began; None if its changes aren't counted."""
    samples: tuple[tuple[tuple[int, bytes], ...], ...] = ()
    """Per tensor: offsets into its bytes, and what was there when the save began."""
    written: tuple[tuple[Any, Any], ...] = ()
    """GPUs, and events on the streams that wrote their tensors."""

    @classmethod
    def of(cls, trees: dict[str, Any]) -> Plan:
        """Encode `trees` and lay out their tensors. Raises `TypeError` for what can't be stored."""
        leaves: list[Leaf] = []
        encoded = {_checked_name(name): encode(tree, name, leaves) for name, tree in trees.items()}
        specs, position = [], 0
        for leaf in leaves:
            specs.append(TensorSpec(leaf.name, leaf.kind, leaf.dtype, leaf.shape, position, leaf.size_bytes))
            position += padded(leaf.size_bytes)
        kept = tuple(_at_once(leaf) for leaf in leaves)
        return cls(
            encoded,
            tuple(specs),
            kept,
            position,
            tuple(_version(leaf.source) for leaf in kept),
            tuple(_sample(leaf) for leaf in kept),
            _written(leaf.source for leaf in kept),
        )

    def copy(self, target: memoryview) -> Snapshot:
        """Copy every tensor. None may change until this returns; raises `TornState` if one did."""
        for device, event in self.written:  # this thread's stream is not the one that wrote them
            sys.modules["torch"].cuda.current_stream(device).wait_event(event)
        for leaf, spec in zip(self.leaves, self.tensors, strict=True):
            end = spec.offset + spec.size_bytes
            leaf.copy_to(target[spec.offset : end])
            padding = padded(spec.size_bytes) - spec.size_bytes
            target[end : end + padding] = bytes(padding)
        self._check_unchanged(target)
        return Snapshot(self.trees, self.tensors, target)

    def _check_unchanged(self, copied: memoryview) -> None:
        for leaf, spec, version, sample in zip(self.leaves, self.tensors, self.versions, self.samples, strict=True):
            as_it_was = all(
                copied[spec.offset + place : spec.offset + place + len(piece)] == piece for place, piece in sample
            )
            if _version(leaf.source) != version or not as_it_was:
                raise TornState(
                    f"{leaf.name} was changed while it was copied for a save, so nothing was saved",
                    "call wait_copied() before anything changes a tensor that was saved",
                )


def _at_once(leaf: Leaf) -> Leaf:
    """The leaf, with a copy of its tensor if that is small or its changes aren't counted."""
    if isinstance(leaf.source, Digest):
        return leaf
    if leaf.kind == "numpy":
        return leaf._replace(source=leaf.source.copy())
    source = leaf.source.detach()  # shares the counter, and stays unchanged if `.data` is set to another tensor
    at_once = leaf.size_bytes <= AT_ONCE_BYTES or _version(source) is None
    return leaf._replace(source=source.clone() if at_once else source)


def _checked_name(name: Any) -> str:
    if type(name) is not str or not name.isprintable():
        raise TypeError(f"{name!r} can't name a part of a checkpoint: use a printable text")
    return name


def _sample(leaf: Leaf) -> tuple[tuple[int, bytes], ...]:
    """Samples of the start, the middle and the end of a large tensor in host memory."""
    if isinstance(leaf.source, Digest) or leaf.kind == "numpy" or leaf.size_bytes <= AT_ONCE_BYTES:
        return ()
    if leaf.source.device.type != "cpu" or not leaf.source.is_contiguous():
        return ()
    if leaf.source.is_conj() or leaf.source.is_neg():  # its memory isn't its value
        return ()
    flat = leaf.source.view(-1).view(sys.modules["torch"].uint8)
    places = (0, leaf.size_bytes // 2, leaf.size_bytes - PIECE_BYTES)
    return tuple((place, flat[place : place + PIECE_BYTES].numpy().tobytes()) for place in places)


def _version(source: Any) -> int | None:
    tensor = source.tensor if isinstance(source, Digest) else source
    try:
        return int(tensor._version)
    except (AttributeError, RuntimeError):  # a numpy array, and an inference tensor
        return None


def _written(sources: Iterable[Any]) -> tuple[tuple[Any, Any], ...]:
    """An event on the current stream of each GPU: what is queued on it now runs before the copy."""
    torch = sys.modules.get("torch")
    devices = {source.device for source in sources if getattr(getattr(source, "device", None), "type", "") == "cuda"}
    if torch is None or not devices:
        return ()
    return tuple((device, torch.cuda.current_stream(device).record_event()) for device in devices)


def padded(size_bytes: int) -> int:
    """The space that a tensor takes in the stream."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
