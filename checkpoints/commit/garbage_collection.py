"""Deletes what isn't needed: old checkpoints once their tombstone expires, and what crashed attempts left behind.

HEAD does not fence deletes. They are safe because only what HEAD no longer names is deleted, and no later HEAD can name
it again: data prefixes are unique to one save of one attempt, and an attempt of an older epoch can no longer commit.

A tombstone's age and a reader's silence are measured by this writer, on its own monotonic clock: the times in them come
from other machines' clocks. A new writer sees everything for the first time and waits again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from checkpoints.commit.head import BURIED_S, Head, Lease, SetAside, Tombstone
from checkpoints.commit.head_recovery import MANIFEST_KEY
from checkpoints.commit.load import load_manifest
from checkpoints.commit.reader_leases import manifests_being_read
from checkpoints.commit.retention import Commit
from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.save_keys import save_name
from checkpoints.storage.base import Store
from checkpoints.util.parallel import parallel_map

CONCURRENCY = 16
_DATA = re.compile(r"(data/e(\d{6,})-[^/]+?(?:-(\d{4,}))?)/.+")
"""A save's prefix (`save_keys.save_prefix`), its epoch and its number within the attempt."""


def expired(head: Head, buried_s: Callable[[Tombstone], float]) -> tuple[Tombstone, ...]:
    """The tombstones whose objects may be deleted; `buried_s` returns for how long one has been seen."""
    kept = {commit.manifest for commit in head.commits}
    return tuple(
        stone for stone in head.tombstones if buried_s(stone) >= BURIED_S and stone.commit.manifest not in kept
    )


def collect(store: Store, lease: Lease, now: datetime | None = None) -> int:
    """Delete the objects of expired tombstones without readers; returns the number of deleted checkpoints.

    `now`: the time to decide for, by this machine's clock; None = the present.
    """
    ahead_s = (now - lease.clock.now()).total_seconds() if now is not None else 0.0
    stones = expired(lease.head, lambda stone: lease.buried_s(stone) + max(0.0, ahead_s))
    if stones:
        read = manifests_being_read(
            store, lease.unchanged
        )  # after the tombstones: see checkpoints.commit.reader_leases
        stones = tuple(stone for stone in stones if stone.commit.manifest not in read)
    for stone in stones:
        prefix = _data_prefix(store, stone.commit)
        if prefix is not None:  # else `collect_orphans` finds its data once the tombstone is gone
            _delete(store, [entry.key for entry in store.list(prefix)])
        store.delete(stone.commit.manifest)
    if stones:
        lease.drop_tombstones(stones)
    return len(stones)


def collect_orphans(store: Store, lease: Lease, *, before_save: int = 0) -> int:
    """Delete data and manifests of earlier attempts that HEAD does not name; returns the number of deleted objects.

    These are uploads cut short by a preemption, and checkpoints that lost the race for HEAD. Needs no clock: an attempt
    of an epoch below ours can't commit. Does nothing if a manifest that HEAD names can't be read: its data isn't known.

    `before_save`: also delete data of our own attempt's saves with a lower number. An attempt begins a save when all
    ranks have finished the previous one: once it is committed, earlier saves that HEAD doesn't name were abandoned.
    """
    head = lease.head
    named = [*head.commits, *(stone.commit for stone in head.tombstones)]
    prefixes = [_data_prefix(store, commit) for commit in named]
    if None in prefixes:
        return 0
    manifests = {commit.manifest for commit in named} | {bad.manifest for bad in head.set_aside}
    kept = tuple(map(saves_of, head.set_aside))
    data = [
        entry.key
        for entry in store.list("data")
        if (match := _DATA.fullmatch(entry.key))
        and (int(match[2]), int(match[3] or 0)) < (head.epoch, before_save)
        and match[1] not in prefixes
        and not entry.key.startswith(kept)
    ]
    over = head.epoch if before_save else head.epoch - 1  # only this process commits for this attempt
    unnamed = [
        entry.key
        for entry in store.list("manifests")
        if (match := MANIFEST_KEY.fullmatch(entry.key)) and int(match[2]) <= over and entry.key not in manifests
    ]
    _delete(store, unnamed)  # first: a HEAD that is rebuilt from the manifests has to find their data
    _delete(store, data)
    return len(unnamed) + len(data)


def collect_damaged(store: Store, lease: Lease) -> int:
    """Delete the checkpoints that were set aside as damaged; returns how many. Only on a user's request."""
    head = lease.head
    named = {_data_prefix(store, commit) for commit in (*head.commits, *(stone.commit for stone in head.tombstones))}
    for bad in head.set_aside:
        found = (entry.key for entry in store.list("data") if entry.key.startswith(saves_of(bad)))
        _delete(store, [key for key in found if (match := _DATA.fullmatch(key)) and match[1] not in named])
        store.delete(bad.manifest)
    if head.set_aside:
        lease.drop_set_aside(head.set_aside)
    return len(head.set_aside)


def saves_of(bad: SetAside | Commit) -> str:
    """The common start of the data prefixes of that attempt's saves of that step, for a manifest that can't be read."""
    return f"data/{save_name(bad.epoch, bad.step)}-"


def _delete(store: Store, keys: list[str]) -> None:
    parallel_map(store.delete, keys, CONCURRENCY)


def _data_prefix(store: Store, commit: Commit) -> str | None:
    """The data folder of a checkpoint, from its manifest; None if that can't be read."""
    try:
        manifest = load_manifest(store, commit)
    except CorruptCheckpoint:
        return None
    return data_prefix(manifest.shards[0].index) if manifest.shards else None


def data_prefix(key: str) -> str | None:
    """The save's folder that contains a key; None if the key isn't a save's."""
    match = _DATA.fullmatch(key)
    return match[1] if match else None
