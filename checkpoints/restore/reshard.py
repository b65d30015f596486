"""Restores the state of N ranks on M ranks: DeepSpeed's ZeRO-3 partitions are recut while they are downloaded.

A rank reads only the chunks that hold its part of some parameter, verifies each, and copies the pieces to where they
belong: it never holds more than its new state and `CONCURRENCY` chunks. What isn't partitioned (counters, generators,
a LoRA run under DDP) comes from the old rank `rank % N`.

The gathered fp32 state is the same, bit for bit. What is computed from it is not: sums over ranks are in another order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.commit.load import load_manifest, load_rank
from checkpoints.commit.retention import Commit
from checkpoints.records.manifest import Chunk, Manifest, ShardIndex, TensorRecord
from checkpoints.records.verified_reads import reread
from checkpoints.restore.shard_restore import CONCURRENCY, Restored, decode_trees, fetch_chunk, restore_from
from checkpoints.snapshot.snapshot import padded
from checkpoints.snapshot.state_tree import tensor_from
from checkpoints.snapshot.zero3_layout import (
    RankState,
    Shapes,
    flat_lengths,
    has_zero3_state,
    partition_length,
    partition_map,
    rename_rank,
    split_into_sub_groups,
)
from checkpoints.storage.base import Store
from checkpoints.util.parallel import parallel_map


class Piece(NamedTuple):
    """Elements of one parameter that go from an old rank to a new one."""

    rank: int
    source: int
    """Offset in the old rank's part of the parameter."""
    target: int
    """Offset in the new rank's part."""
    length: int


def pieces(numel: int, old_length: int, new_length: int, rank: int) -> Iterator[Piece]:
    """The pieces that new rank `rank` needs of a parameter with `numel` elements, in order.

    `old_length` and `new_length`: how much of it each rank held and will hold, including padding. Padding isn't moved.
    """
    start = rank * new_length
    position, end = start, min(numel, start + new_length)
    while position < end:
        old_rank, source = divmod(position, old_length)
        length = min(end - position, old_length - source)
        yield Piece(old_rank, source, position - start, length)
        position += length


@dataclass(frozen=True)
class NewLayout:
    """The sub-groups for another world size."""

    shapes: list[Shapes]
    groups: list[list[int]]
    """The sub-groups of each param group."""
    homes: list[int]
    """For each sub-group, the old one of its first parameter: what isn't cut (the step count) comes from there."""

    @classmethod
    def of(cls, old: RankState, world_size: int) -> NewLayout:
        shapes: list[Shapes] = []
        groups: list[list[int]] = []
        for group in old.groups:
            merged: Shapes = {}
            for sub_group in group:
                merged |= old.param_shapes[sub_group]
            cut = split_into_sub_groups(merged, world_size, old.sub_group_size)
            groups.append(list(range(len(shapes), len(shapes) + len(cut))))
            shapes += cut
        home = {name: index for index, known in enumerate(old.param_shapes) for name in known}
        return cls(shapes, groups, [home[next(iter(known))] for known in shapes])


class Copy(NamedTuple):
    """Bytes of an old rank's stream that go into this rank's."""

    rank: int
    source: int
    target: int
    size_bytes: int


class NewTensor(NamedTuple):
    """A tensor in this rank's new stream."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass
class Plan:
    """The content of this rank's new stream, and where it comes from."""

    size_bytes: int = 0
    cut: dict[tuple[int, str], NewTensor] = field(default_factory=dict)
    """(sub-group, slot) -> tensor."""
    frozen: dict[str, NewTensor] = field(default_factory=dict)
    kept: dict[int, NewTensor] = field(default_factory=dict)
    """Unchanged tensors of the base rank, by their index."""
    copies: list[Copy] = field(default_factory=list)

    def place(self, like: TensorRecord, shape: tuple[int, ...], numel: int) -> NewTensor:
        """Reserve space for a tensor of `numel` elements with the kind and dtype of `like`."""
        tensor = NewTensor(like.kind, like.dtype, shape, self.size_bytes, numel * _item_bytes(like))
        self.size_bytes += padded(tensor.size_bytes)
        return tensor


@dataclass(frozen=True)
class ReshardedShard:
    """One rank's state, recut for another number of ranks. Like `RestoredShard`."""

    manifest: Manifest
    base: ShardIndex
    layout: NewLayout
    plan: Plan
    rank: int
    world_size: int
    data: memoryview

    def trees(self) -> dict[str, Any]:
        """The state trees by file name, as a rank of the new world size would have saved them."""
        replaced = {*range(len(self.base.tensors))} - self.plan.kept.keys()

        def read(index: int) -> Any:
            return self.base.tensors[index] if index in replaced else self._tensor(self.plan.kept[index])

        trees = decode_trees(self.base, read)
        state = RankState(trees, self.manifest.world_size)
        self._cut_optimizer(state)
        self._cut_model(state)
        return {rename_rank(name, self.rank): tree for name, tree in trees.items()}

    def _cut_optimizer(self, state: RankState) -> None:
        layout, cut = self.layout, self.plan.cut
        old = state.inner["state"]
        new: dict[int, dict[str, Any]] = {}
        for sub_group, home in enumerate(layout.homes):
            if home in old:
                new[sub_group] = {
                    key: self._tensor(cut[sub_group, key]) if (sub_group, key) in cut else value
                    for key, value in old[home].items()
                }
        state.inner["state"] = new
        for group, sub_groups in zip(state.inner["param_groups"], layout.groups, strict=True):
            group["params"] = sub_groups
        state.optimizer["fp32_flat_groups"] = [self._tensor(cut[index, ""]) for index in range(len(layout.shapes))]
        if isinstance(state.optimizer.get("partition_count"), int):
            state.optimizer["partition_count"] = self.world_size

    def _cut_model(self, state: RankState) -> None:
        sizes = {name: shape for shapes in state.model["param_shapes"] for name, shape in shapes.items()}
        state.model["param_shapes"] = [OrderedDict((name, sizes[name]) for name in new) for new in self.layout.shapes]
        state.model["dp_world_size"] = self.world_size
        if self.plan.frozen:
            fragments = {name: self._tensor(tensor) for name, tensor in self.plan.frozen.items()}
            state.model["frozen_param_fragments"] = fragments

    def _tensor(self, tensor: NewTensor) -> Any:
        view = self.data[tensor.offset : tensor.offset + tensor.size_bytes]
        return tensor_from(tensor.kind, tensor.dtype, tensor.shape, view)


def restore_for(store: Store, commit: Commit, rank: int, world_size: int, *, local: Path | None = None) -> Restored:
    """The state of `rank` of `world_size`, however many ranks saved it. `local` as in `restore_shard`.

    Raises:
        CorruptCheckpoint: an object is missing, truncated, or differs from its checksum; names the object.
        UserError: a ZeRO-3 state in an unknown layout.
    """
    manifest = load_manifest(store, commit)
    base = rank % manifest.world_size
    old = _OldRanks(store, manifest)
    index = old.index(base)
    if manifest.world_size == world_size:
        return restore_from(store, manifest, index, local=local)
    if not has_zero3_state(index.trees):
        return restore_from(store, manifest, index)
    layout = NewLayout.of(old[base], world_size)
    plan = _plan(old, layout, base, rank, world_size)
    data = memoryview(bytearray(plan.size_bytes))  # zeros: padding isn't copied
    for source in sorted({copy.rank for copy in plan.copies}):
        _fetch(store, old.index(source), [copy for copy in plan.copies if copy.rank == source], data)
    return ReshardedShard(manifest, index, layout, plan, rank, world_size, data)


class _OldRanks:
    """Indexes and layouts of the ranks that saved, read on demand."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._indexes: dict[int, ShardIndex] = {}
        self._states: dict[int, RankState] = {}
        self.world_size = manifest.world_size

    def index(self, rank: int) -> ShardIndex:
        if rank not in self._indexes:
            self._indexes[rank] = load_rank(self._store, self._manifest, rank)
        return self._indexes[rank]

    def __getitem__(self, rank: int) -> RankState:
        """The rank's state, with tensor records in place of the tensors."""
        if rank not in self._states:
            index = self.index(rank)
            trees = decode_trees(index, index.tensors.__getitem__, plain=True)
            self._states[rank] = RankState(trees, self.world_size)
        return self._states[rank]


def _plan(old: _OldRanks, layout: NewLayout, base: int, rank: int, world_size: int) -> Plan:
    plan = Plan()
    replaced: set[int] = set()
    _plan_cut(plan, old, layout, base, rank, world_size)
    for group in range(len(old[base].param_shapes)):
        replaced |= {record.offset for _, record in old[base].slots(group) if record.size_bytes}
    for name, record in old[base].frozen().items():
        replaced.add(record.offset)
        _plan_frozen(plan, old, base, name, record, rank, world_size)
    for number, record in enumerate(old.index(base).tensors):
        if record.size_bytes and record.offset in replaced:
            continue
        plan.kept[number] = tensor = plan.place(record, record.shape, record.size_bytes // _item_bytes(record))
        if record.size_bytes:
            plan.copies.append(Copy(base, record.offset, tensor.offset, record.size_bytes))
    return plan


def _plan_cut(plan: Plan, old: _OldRanks, layout: NewLayout, base: int, rank: int, world_size: int) -> None:
    before = {part.name: part for part in partition_map(old[base].param_shapes, old.world_size)}
    lengths = flat_lengths(layout.shapes, world_size)
    slots = {group: dict(old[base].slots(group)) for group in range(len(old[base].param_shapes))}
    for sub_group, home in enumerate(layout.homes):
        for slot, record in slots[home].items():
            plan.cut[sub_group, slot] = plan.place(record, (lengths[sub_group],), lengths[sub_group])
    for part in partition_map(layout.shapes, world_size):
        was = before[part.name]
        for piece in pieces(part.numel, was.length, part.length, rank):
            records = dict(old[piece.rank].slots(was.group))
            for slot, record in records.items():
                item, target = _item_bytes(record), plan.cut[part.group, slot]
                plan.copies.append(
                    Copy(
                        piece.rank,
                        record.offset + (was.offset + piece.source) * item,
                        target.offset + (part.offset + piece.target) * item,
                        piece.length * item,
                    )
                )


def _plan_frozen(
    plan: Plan, old: _OldRanks, base: int, name: str, record: TensorRecord, rank: int, world_size: int
) -> None:
    shape = tuple(old[base].model["frozen_param_shapes"][name])
    length, item = partition_length(shape, world_size), _item_bytes(record)
    plan.frozen[name] = target = plan.place(record, (length,), length)
    numel = int(np.prod(shape))
    for piece in pieces(numel, partition_length(shape, old.world_size), length, rank):
        source = old[piece.rank].frozen()[name].offset + piece.source * item
        plan.copies.append(Copy(piece.rank, source, target.offset + piece.target * item, piece.length * item))


def _fetch(store: Store, index: ShardIndex, copies: list[Copy], target: memoryview) -> None:
    """Read the chunks of one old rank that `copies` need, verify them, and copy the pieces into `target`."""
    jobs: list[tuple[Chunk, list[Copy]]] = []
    position = 0
    for chunk in index.chunks:
        end = position + chunk.size_bytes
        inside = [_clip(copy, position, end) for copy in copies if copy.source < end and position < _end(copy)]
        if inside:
            jobs.append((chunk, inside))
        position = end

    def spread(job: tuple[Chunk, list[Copy]]) -> None:
        chunk, inside = job
        data = memoryview(bytearray(chunk.size_bytes))
        reread(lambda: fetch_chunk(store, chunk, data))
        for copy in inside:
            target[copy.target : copy.target + copy.size_bytes] = data[copy.source : copy.source + copy.size_bytes]

    parallel_map(spread, jobs, CONCURRENCY)


def _clip(copy: Copy, start: int, end: int) -> Copy:
    """The part of `copy` inside the chunk [start, end), with its source relative to the chunk's start."""
    skipped = max(0, start - copy.source)
    size_bytes = min(_end(copy), end) - (copy.source + skipped)
    return Copy(copy.rank, copy.source + skipped - start, copy.target + skipped, size_bytes)


def _end(copy: Copy) -> int:
    return copy.source + copy.size_bytes


def _item_bytes(record: TensorRecord) -> int:
    numel = int(np.prod(record.shape))
    return record.size_bytes // numel if numel else 1
