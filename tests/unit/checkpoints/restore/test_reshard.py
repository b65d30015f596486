"""N ranks' ZeRO-3 state on M ranks is what M ranks would have saved, bit for bit."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.commit.head import Lease, Writer
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.commit.retention import Commit, Retention
from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.manifest import Manifest
from checkpoints.records.save_keys import save_prefix
from checkpoints.restore.consolidate import Zero3State
from checkpoints.restore.reshard import pieces, restore_for
from checkpoints.restore.shard_restore import restore_shard
from checkpoints.save.shard_upload import upload_shard
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot
from checkpoints.storage.base import Store
from checkpoints.storage.object_store import ObjectStore
from tests.support.zero3_fake import SLOTS, ParamGroups, random_values, rank_trees

shapes = st.lists(st.integers(1, 6), max_size=3).map(tuple)


def named(groups: list[list[tuple[int, ...]]]) -> ParamGroups:
    return [{f"g{g}.p{i}": shape for i, shape in enumerate(group)} for g, group in enumerate(groups)]


param_groups = st.lists(st.lists(shapes, min_size=1, max_size=5), min_size=1, max_size=3).map(named)


def save(store: Store, ranks: list[dict[str, Any]], chunk_bytes: int) -> Commit:
    lease = Lease.claim(store, Writer(id="w", host="h", pid=1))
    prefix = save_prefix(1, 7, "w", 1)
    refs = tuple(
        upload_shard(store, prefix, rank, Snapshot.take(trees, HostBuffer()), chunk_bytes=chunk_bytes)
        for rank, trees in enumerate(ranks)
    )
    manifest = Manifest(
        run="r", step=7, epoch=1, world_size=len(ranks), created_at=lease.head.lease_until, reason="interval",
        fingerprint={}, shards=refs,
    )  # fmt: skip
    return lease.commit(manifest, Retention(newest=1))


def assert_same(one: Any, other: Any, path: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple) and not isinstance(one, torch.Size):
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    else:
        assert one == other, path


@given(
    param_groups,
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 10, 1000]),
    st.sampled_from([16, 100, 4096]),
    st.integers(0, 999),
)
@settings(max_examples=150)
def test_any_world_size(
    groups: ParamGroups, old: int, new: int, sub_group_size: int, chunk_bytes: int, seed: int
) -> None:
    values = random_values(groups, seed)
    frozen = {"base.w": torch.randn(11).to(torch.bfloat16)}

    def trees(rank: int, world_size: int) -> dict[str, Any]:
        return rank_trees(groups, values, rank, world_size, sub_group_size, frozen)

    store = ObjectStore.memory()
    commit = save(store, [trees(rank, old) for rank in range(old)], chunk_bytes)
    for rank in range(new):
        assert_same(restore_for(store, commit, rank, new).trees(), trees(rank, new))


@given(param_groups, st.integers(1, 4), st.integers(1, 4), st.integers(0, 999))
@settings(max_examples=40)
def test_the_gathered_state_survives_the_way_there_and_back(groups: ParamGroups, old: int, new: int, seed: int) -> None:
    values = random_values(groups, seed)
    store, there, back = (ObjectStore.memory() for _ in range(3))
    commit = save(store, [rank_trees(groups, values, rank, old, 12, {}) for rank in range(old)], 64)
    moved = save(there, [restore_for(store, commit, rank, new).trees() for rank in range(new)], 64)
    again = save(back, [restore_for(there, moved, rank, old).trees() for rank in range(old)], 64)
    for where, what, ranks in ((store, commit, old), (there, moved, new), (back, again, old)):
        state = Zero3State([restore_shard(where, what, rank) for rank in range(ranks)])
        for slot in SLOTS:
            for name, tensor in state.tensors(slot):
                assert torch.equal(torch.from_numpy(tensor.copy()), values[slot][name])


@given(st.integers(0, 100), st.integers(1, 7), st.integers(1, 7))
def test_every_element_comes_once_and_in_order(numel: int, old: int, new: int) -> None:
    old_length, new_length = -(-numel // old), -(-numel // new)
    found = [
        (piece.rank * old_length + piece.source + i, rank * new_length + piece.target + i)
        for rank in range(new)
        for piece in pieces(numel, old_length, new_length, rank)
        for i in range(piece.length)
    ]
    assert found == [(element, element) for element in range(numel)]


def test_half_a_torch_is_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is planned in a thread while the main thread is still importing torch."""
    groups: ParamGroups = [{"w": (4, 4)}]
    store, values = ObjectStore.memory(), random_values(groups, 1)
    commit = save(store, [rank_trees(groups, values, 0, 1, 10**9, {})], 64)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", types.ModuleType("torch"))
        shard = restore_for(store, commit, 1, 2)
    assert_same(shard.trees(), rank_trees(groups, values, 1, 2, 10**9, {}))


def test_a_rank_reads_only_what_it_needs() -> None:
    """Eight ranks' state on four: each reads two old ranks."""
    groups: ParamGroups = [{"w": (64, 64)}]
    store = CountingStore()
    values = random_values(groups, 1)
    commit = save(store, [rank_trees(groups, values, rank, 8, 10**9, {}) for rank in range(8)], 1024)
    store.read.clear()
    restore_for(store, commit, 1, 4)
    ranks = {key.split("/")[2] for key in store.read if "/c" in key}
    assert ranks == {"r00002", "r00003"} | {"r00001"}  # rank 1 is the base: counters and generators


def test_a_damaged_chunk_is_noticed() -> None:
    groups: ParamGroups = [{"w": (16, 16)}]
    store = ObjectStore.memory()
    values = random_values(groups, 1)
    commit = save(store, [rank_trees(groups, values, rank, 2, 10**9, {}) for rank in range(2)], 512)
    for ref in load_manifest(store, commit).shards:
        for chunk in load_index(store, ref).chunks:
            data = bytearray(store.get(chunk.key).data)
            data[len(data) // 2] ^= 1
            good = store.get(chunk.key).data
            store.put(chunk.key, bytes(data))
            with pytest.raises(CorruptCheckpoint, match="CRC32C"):
                for rank in range(3):
                    restore_for(store, commit, rank, 3)
            store.put(chunk.key, good)


def test_a_state_that_is_not_partitioned_goes_to_every_rank() -> None:
    """LoRA under DDP: rank 0 has the weights, each rank its generators."""
    store = ObjectStore.memory()
    commit = save(store, [{"rng": {"rank": rank}} for rank in range(2)], 64)
    assert [restore_for(store, commit, rank, 3).trees()["rng"]["rank"] for rank in range(3)] == [0, 1, 0]


class CountingStore(ObjectStore):
    """Remembers which chunks are read."""

    def __init__(self) -> None:
        memory = ObjectStore.memory()
        super().__init__(memory._store, memory.url)
        self.read: list[str] = []

    def read_into(self, key: str, *args: Any, **kwargs: Any) -> int:
        self.read.append(key)
        return super().read_into(key, *args, **kwargs)
