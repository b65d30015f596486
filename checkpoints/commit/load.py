"""Reads and verifies the records of a committed checkpoint."""

from __future__ import annotations

from checkpoints.commit.retention import Commit
from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.records.manifest import Manifest, ShardIndex, ShardRef, parse, sha256
from checkpoints.records.verified_reads import reread
from checkpoints.storage.base import Store


def load_manifest(store: Store, commit: Commit) -> Manifest:
    """Read and verify the manifest of a commit; raises `CorruptCheckpoint`."""
    manifest = parse(Manifest, _read(store, commit.manifest, commit.sha256), f"{store.url}/{commit.manifest}")
    recorded = manifest.step, manifest.epoch, manifest.size_bytes
    if recorded != (commit.step, commit.epoch, commit.size_bytes):
        raise CorruptCheckpoint(
            f"{commit.manifest} contradicts HEAD: step {recorded[0]} of attempt {recorded[1]}, {recorded[2]:,} bytes"
        )
    if sorted(ref.rank for ref in manifest.shards) != list(range(manifest.world_size)):
        raise CorruptCheckpoint(f"{commit.manifest} lacks one shard for each of {manifest.world_size} ranks")
    return manifest


def load_index(store: Store, ref: ShardRef) -> ShardIndex:
    """Read and verify a rank's shard index; raises `CorruptCheckpoint`."""
    index = parse(ShardIndex, _read(store, ref.index, ref.sha256), f"{store.url}/{ref.index}")
    total = sum(chunk.size_bytes for chunk in index.chunks)
    if index.rank != ref.rank or not index.size_bytes == total == ref.size_bytes:
        raise CorruptCheckpoint(f"{ref.index} contradicts its manifest")
    keys = [chunk.key for chunk in index.chunks]
    if keys != sorted(set(keys)):
        raise CorruptCheckpoint(f"{ref.index} has its chunks in another order than they were written in")
    position = 0
    for record in index.tensors:
        if record.offset < position or min(record.shape, default=0) < 0:
            raise CorruptCheckpoint(f"{ref.index}: {record.name} overlaps another tensor, or has no shape")
        position = record.offset + record.size_bytes
    if position > index.size_bytes:
        raise CorruptCheckpoint(f"{ref.index} has tensors beyond its end")
    return index


def load_rank(store: Store, manifest: Manifest, rank: int) -> ShardIndex:
    """Read and verify the shard index of a rank; raises `CorruptCheckpoint`."""
    for ref in manifest.shards:
        if ref.rank == rank:
            return load_index(store, ref)
    raise CorruptCheckpoint(f"the manifest of step {manifest.step} has no shard of rank {rank}")


def _read(store: Store, key: str, digest: str) -> bytes:
    def read() -> bytes:
        try:
            data = store.get(key).data
        except ObjectMissing as error:
            raise CorruptCheckpoint(f"{store.url}/{key} is missing") from error
        if sha256(data) != digest:
            raise CorruptCheckpoint(f"{store.url}/{key} differs from its sha256")
        return data

    return reread(read)
