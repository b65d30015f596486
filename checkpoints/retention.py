"""Deleting old checkpoints: never before their tombstone has outlived every reader that may still use them."""

from __future__ import annotations

from datetime import datetime

from checkpoints.errors import CorruptCheckpoint
from checkpoints.head import Head, Lease, Tombstone
from checkpoints.restore import load_manifest
from checkpoints.store import Store


def expired(head: Head, now: datetime) -> tuple[Tombstone, ...]:
    """The tombstones whose objects may be deleted now."""
    kept = {commit.manifest for commit in head.commits}
    return tuple(stone for stone in head.tombstones if stone.until <= now and stone.commit.manifest not in kept)


def collect(store: Store, lease: Lease, now: datetime) -> int:
    """Delete the objects of expired tombstones and forget them; returns how many checkpoints went.

    HEAD does not fence deletes. They are safe because only what HEAD no longer names is deleted, and no later HEAD can
    name it again: data prefixes are unique to one save.
    """
    stones = expired(lease.head, now)
    for stone in stones:
        _delete_checkpoint(store, stone)
    if stones:
        lease.drop_tombstones(stones)
    return len(stones)


def _delete_checkpoint(store: Store, stone: Tombstone) -> None:
    try:
        manifest = load_manifest(store, stone.commit)
    except CorruptCheckpoint:
        store.delete(stone.commit.manifest)  # its data is an orphan now, for the garbage collector
        return
    for prefix in sorted({shard.index.rsplit("/", 1)[0] for shard in manifest.shards}):
        for entry in list(store.list(prefix)):
            store.delete(entry.key)
    store.delete(stone.commit.manifest)
