"""Downloads a checkpoint as a small run of its own, which every tool can read like the bucket."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from checkpoints.commit.folder_manifest import MODEL, fetch_model_files, put_files, read_list
from checkpoints.commit.head import HEAD_KEY, RELEASED, Head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.commit.retention import Commit
from checkpoints.errors import AlreadyExists, CorruptCheckpoint, ObjectMissing, UserError
from checkpoints.records.manifest import Chunk, checked, sha256
from checkpoints.records.verified_reads import reread
from checkpoints.records.write_once import put_once
from checkpoints.restore.shard_restore import fetch_chunk
from checkpoints.run_log.run_record import PINS_KEY, RUN_KEY
from checkpoints.storage.base import Store
from checkpoints.storage.filesystem import FolderStore
from checkpoints.util.parallel import parallel_map

CONCURRENCY = 4

logger = logging.getLogger(__name__)


def pull(
    store: Store, head: Head, commit: Commit, folder: Path, progress: Callable[[int], None] = lambda size: None
) -> FolderStore:
    """Copy one checkpoint into `folder` (created), each chunk verified before it is kept, and return it as a run.

    Resuming after an interruption fetches only what is missing. Holds `CONCURRENCY` chunks in memory.

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
                target.put(chunk.key, reread(lambda: _verified(store, chunk)))
            progress(chunk.size_bytes)

        parallel_map(fetch, index.chunks, CONCURRENCY)
    _copy_records(store, target)
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / name for name in fetch_model_files(store, Path(temporary))]
        if read_list(store, MODEL) is not None:
            put_files(target, MODEL, paths)
        else:  # from an older run: unverified here too
            for path in paths:
                target.put_file(f"{MODEL}/{path.name}", path)
    own = head.model_copy(update={"commits": (commit,), "tombstones": (), "set_aside": (), "lease_until": RELEASED})
    target.put(HEAD_KEY, own.to_json())
    return target


def _copy_records(store: Store, target: FolderStore) -> None:
    """Copy the records of the run's identity, if any: a run without the trainer has neither."""
    for key in (RUN_KEY, PINS_KEY):
        try:
            _copy_record(store, target, key)
        except ObjectMissing:
            pass
        except CorruptCheckpoint as error:  # the checkpoint is complete without it
            logger.warning("%s: left out", error.message)


def _copy_record(store: Store, target: FolderStore, key: str) -> None:
    """Copy a record, only if it matches its own checksum."""

    def read() -> bytes:
        data = store.get(key).data
        checked(data, f"{store.url}/{key}")
        return data

    _put(target, key, reread(read))


def _copy(store: Store, target: FolderStore, key: str, digest: str) -> None:
    """Copy one small object, only if its bytes have that SHA-256."""

    def read() -> bytes:
        data = store.get(key).data
        if sha256(data) != digest:
            raise CorruptCheckpoint(f"{store.url}/{key} differs from its sha256")
        return data

    _put(target, key, reread(read))


def _put(target: FolderStore, key: str, data: bytes) -> None:
    try:
        put_once(target, key, data)
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
