"""What a run still has when its HEAD is gone: it was deleted, or a tool copied the folder without it.

Every manifest has its own checksum and is named by its hash, so the checkpoints can be found without HEAD. What is lost
is who held the run, pins and scores.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.records.manifest import Manifest, manifest_key, parse, sha256
from checkpoints.records.verified_reads import reread_slowly
from checkpoints.run_log.event_log import read_events
from checkpoints.storage.base import Store
from checkpoints.util.parallel import parallel_map

CONCURRENCY = 16
MANIFEST_KEY = re.compile(r"manifests/s(\d{8,})-e(\d{6,})-[0-9a-f]+\.json")


class Found(NamedTuple):
    """A valid manifest."""

    key: str
    sha256: str
    manifest: Manifest


class Bad(NamedTuple):
    """A manifest that can't be read."""

    key: str
    step: int
    epoch: int
    fault: str


class Remains(NamedTuple):
    """What is left without HEAD."""

    manifests: tuple[Found, ...]
    """Newest step first, one for each step."""
    damaged: tuple[Bad, ...]
    last_epoch: int
    """The highest epoch found in manifests or events."""


def find_remains(store: Store) -> Remains | None:
    """The checkpoints of a run that has no HEAD; None if it never had one, which costs one listing."""
    keys = [match[0] for entry in store.list("manifests") if (match := MANIFEST_KEY.fullmatch(entry.key))]
    if not keys:
        return None
    newest: dict[int, Found] = {}
    damaged: list[Bad] = []
    for found in parallel_map(lambda key: _read(store, key), sorted(keys), CONCURRENCY):
        if isinstance(found, Found):
            newest[found.manifest.step] = found  # for each step, the one with the latest epoch
        elif found is not None:
            damaged.insert(0, found)
    epochs = [int(match[2]) for key in keys if (match := MANIFEST_KEY.fullmatch(key))]
    epochs += [event.attempt for event in read_events(store)]
    return Remains(tuple(newest[step] for step in sorted(newest, reverse=True)), tuple(damaged), max(epochs))


def _read(store: Store, key: str) -> Found | Bad | None:
    """The manifest, if it exists; `Bad` if it doesn't match its name."""

    def read(store: Store) -> Found:
        data = store.get(key).data
        digest = sha256(data)
        found = Found(key, digest, parse(Manifest, data, f"{store.url}/{key}"))
        if key != manifest_key(found.manifest.step, found.manifest.epoch, digest):
            raise CorruptCheckpoint(f"{store.url}/{key} does not match its name")
        return found

    try:
        return reread_slowly(store, read)
    except ObjectMissing:
        return None
    except CorruptCheckpoint as error:
        step, epoch = MANIFEST_KEY.fullmatch(key).groups()  # type: ignore[union-attr]  # see `find_remains`
        return Bad(key, int(step), int(epoch), error.message)
