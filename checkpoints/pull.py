"""A checkpoint on the local disk: a small run of its own, that every tool can read like the bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from checkpoints.confirm import confirmed
from checkpoints.errors import AlreadyExists, CorruptCheckpoint, ObjectMissing, UserError
from checkpoints.folder_store import FolderStore
from checkpoints.head import HEAD_KEY, RELEASED, Commit, Head
from checkpoints.manifest import Chunk, sha256
from checkpoints.parallel import parallel_map
from checkpoints.restore import fetch_chunk, load_index, load_manifest
from checkpoints.run import RUN_KEY
from checkpoints.store import Store
from checkpoints.upload import put_once

CONCURRENCY = 4
MODEL_FOLDER = "model"
"""Config and tokenizer of the base model, written once by the trainer: what weights need to become a model."""


def pull(
    store: Store, head: Head, commit: Commit, folder: Path, progress: Callable[[int], None] = lambda size: None
) -> FolderStore:
    """Copy one checkpoint into `folder` (created), each chunk verified before it is kept, and return it as a run.

    Going on after an interruption costs only what is missing. Holds `CONCURRENCY` chunks in memory.

    Raises:
        CorruptCheckpoint: an object is missing or damaged.
        UserError: the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = FolderStore(folder)
    manifest = load_manifest(store, commit)
    _copy(store, target, commit.manifest, commit.sha256)
    for ref in manifest.shards:
        index = load_index(store, ref)
        _copy(store, target, ref.index, ref.sha256)

        def fetch(chunk: Chunk) -> None:
            if not _is_good(target, chunk):
                target.put(chunk.key, confirmed(lambda: _verified(store, chunk)))
            progress(chunk.size_bytes)

        parallel_map(fetch, index.chunks, CONCURRENCY)
    for entry in store.list(MODEL_FOLDER):
        _copy(store, target, entry.key)
    _copy(store, target, RUN_KEY)
    own = head.model_copy(update={"commits": (commit,), "tombstones": (), "lease_until": RELEASED})
    target.put(HEAD_KEY, own.to_json())
    return target


def _copy(store: Store, target: FolderStore, key: str, digest: str = "") -> None:
    """Copy one small object; with `digest`, only if these very bytes have that SHA-256."""

    def read() -> bytes:
        data = store.get(key).data
        if digest and sha256(data) != digest:
            raise CorruptCheckpoint(f"{store.url}/{key} differs from its sha256")
        return data

    try:
        put_once(target, key, confirmed(read))
    except ObjectMissing:
        if key != RUN_KEY:  # a run that was made without the trainer has none
            raise
    except AlreadyExists as error:
        raise UserError(f"{target.url} holds another {key}", "pull into an empty folder") from error


def _verified(store: Store, chunk: Chunk) -> memoryview:
    """The bytes of a chunk; raises `CorruptCheckpoint`."""
    data = memoryview(bytearray(chunk.size_bytes))
    fetch_chunk(store, chunk, data)
    return data


def _is_good(target: FolderStore, chunk: Chunk) -> bool:
    try:
        _verified(target, chunk)
    except CorruptCheckpoint:
        return False
    return True
