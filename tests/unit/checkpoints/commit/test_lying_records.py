"""Records with good checksums that lie, as a hostile writer makes them, or a bug: always `CorruptCheckpoint`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from checkpoints.commit.load import load_index, load_manifest
from checkpoints.commit.retention import Commit
from checkpoints.errors import CorruptCheckpoint, NoMemory
from checkpoints.records.manifest import CHECK, checksum, sha256
from checkpoints.restore.shard_restore import restore_from, restore_shard, verify
from checkpoints.storage.object_store import ObjectStore
from tests.unit.checkpoints.restore.test_shard_restore import Run

Change = Callable[[dict[str, Any]], object]


def signed(content: dict[str, Any]) -> bytes:
    content.pop(CHECK, None)
    return json.dumps({**content, CHECK: checksum(content)}).encode()


def lie(
    store: ObjectStore, commit: Commit, index_change: Change, manifest_change: Change = lambda manifest: None
) -> Commit:
    """The checkpoint with another index of rank 0 and another manifest, every hash of it right."""
    manifest = json.loads(store.get(commit.manifest).data)
    ref = manifest["shards"][0]
    index = json.loads(store.get(ref["index"]).data)
    index_change(index)
    store.put(ref["index"], signed(index))
    ref["sha256"] = sha256(store.get(ref["index"]).data)
    manifest_change(manifest)
    store.put(commit.manifest, signed(manifest))
    return commit.model_copy(update={"sha256": sha256(store.get(commit.manifest).data)})


LIES: dict[str, Change] = {
    "a chunk of 2**60 bytes": lambda i: (i["chunks"][0].update(size_bytes=1 << 60), i.update(size_bytes=1 << 60)),
    "a chunk of 2**70 bytes": lambda i: (i["chunks"][0].update(size_bytes=1 << 70), i.update(size_bytes=1 << 70)),
    "a tensor behind the end": lambda i: i["tensors"][0].update(offset=1 << 40),
    "a dtype that is a function": lambda i: i["tensors"][0].update(kind="torch", dtype="load"),
    "a tree's dtype that is a module": lambda i: i["trees"].update(model={"$dtype": "os"}),
    "an unknown tag": lambda i: i["trees"].update(model={"$x": 1}),
    "a tensor's number from the end": lambda i: i["trees"].update(model={"$tensor": -1}),
    "a tensor's number beyond the end": lambda i: i["trees"].update(model={"$tensor": 10**9}),
    "a tensor's number that is none": lambda i: i["trees"].update(model={"$tensor": True}),
    "chunks in another order": lambda i: i["chunks"].reverse(),
    "a chunk twice": lambda i: i["chunks"].__setitem__(1, i["chunks"][0]),
    "tensors that overlap": lambda i: i["tensors"][1].update(offset=0),
    "a shape below nothing": lambda i: i["tensors"][0].update(shape=[-20]),
    "a dtype that numpy takes for code": lambda i: i["tensors"][0].update(kind="numpy", dtype=","),
    "a number that no float is": lambda i: i["trees"].update(model={"$float": 10**400}),
    "a dtype of nothing": lambda i: i["tensors"][0].update(kind="numpy", dtype="|V0"),
    "an unknown dtype": lambda i: i["tensors"][0].update(kind="torch", dtype="float7"),
    "a shape that is not its size": lambda i: i["tensors"][0].update(shape=[3]),
    "sizes that are texts": lambda i: i["trees"].update(model={"$size": ["two"]}),
    "a path out of the bucket": lambda i: i["chunks"][0].update(key="../x"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_a_corrupt_checkpoint(what: str) -> None:
    run = Run(ObjectStore.memory())
    commit = lie(run.store, run.save(5), LIES[what])  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpoint):
        restore_shard(run.store, commit, 0).trees()


@pytest.mark.parametrize("what", LIES)
def test_a_lie_is_not_called_good(what: str) -> None:
    """verify said "good", and the restore failed."""
    run = Run(ObjectStore.memory())
    commit = lie(run.store, run.save(5), LIES[what])  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpoint):
        verify(run.store, commit)


@pytest.mark.parametrize("field", ["step", "epoch"])
def test_a_commit_has_to_be_of_the_step_that_head_names(field: str) -> None:
    """HEAD said step 500, verify called it good, and the restore gave step 24."""
    run = Run(ObjectStore.memory())
    commit = run.save(5)
    with pytest.raises(CorruptCheckpoint, match="contradicts HEAD"):
        load_manifest(run.store, commit.model_copy(update={field: 500}))


@pytest.mark.parametrize("what", ["a shard is missing", "a shard twice"])
def test_each_rank_has_one_shard(what: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["shards"][1] = manifest["shards"][0]
        if what == "a shard is missing":
            manifest["shards"][1]["size_bytes"] *= 2
            del manifest["shards"][0]

    run = Run(ObjectStore.memory())
    commit = lie(run.store, run.save(5), lambda index: None, change)  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpoint):
        load_manifest(run.store, commit)


def test_what_nobody_could_restore_is_not_called_good() -> None:
    run = Run(ObjectStore.memory())
    commit = lie(run.store, run.save(5), LIES["an unknown tag"])  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpoint, match="unknown tag"):
        verify(run.store, commit)


def test_sizes_have_to_agree_from_head_down() -> None:
    def larger(manifest: dict[str, Any]) -> None:
        manifest["shards"][0]["size_bytes"] += 64

    run = Run(ObjectStore.memory())
    commit = lie(run.store, run.save(5), lambda index: None, larger)  # type: ignore[arg-type]
    with pytest.raises(CorruptCheckpoint, match="contradicts HEAD"):
        load_manifest(run.store, commit)
    believed = commit.model_copy(update={"size_bytes": commit.size_bytes + 64})
    with pytest.raises(CorruptCheckpoint, match="contradicts its manifest"):
        restore_shard(run.store, believed, 0)


def test_a_machine_without_memory_condemns_no_checkpoint() -> None:
    class Small:
        def reserve(self, size_bytes: int) -> memoryview:
            raise OSError(12, "Cannot allocate memory")

    run = Run()
    manifest = load_manifest(run.store, run.save(5))
    with pytest.raises(NoMemory, match=r"no memory for the 0\.0 GiB of rank 0"):
        restore_from(run.store, manifest, load_index(run.store, manifest.shards[0]), Small())
