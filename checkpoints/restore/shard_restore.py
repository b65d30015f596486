"""Restores tensors from HEAD and verifies every byte."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import xxhash
from awscrt.checksums import crc32c

from checkpoints.commit.load import load_index, load_manifest, load_rank
from checkpoints.commit.retention import Commit
from checkpoints.errors import CorruptCheckpoint, NoGoodCheckpoint, NoMemory, ObjectMissing
from checkpoints.records.manifest import Chunk, Manifest, ShardIndex
from checkpoints.records.verified_reads import reread
from checkpoints.snapshot.shared_memory import open_shared
from checkpoints.snapshot.snapshot import Buffer, HostBuffer
from checkpoints.snapshot.state_tree import LeafReader, check_leaf, decode, tensor_from
from checkpoints.storage.base import Store
from checkpoints.util.parallel import parallel_map

CONCURRENCY = 4

logger = logging.getLogger(__name__)


class Restored(Protocol):
    """One rank's state from a checkpoint."""

    @property
    def manifest(self) -> Manifest: ...

    def trees(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Restored)
_OF_A_TREE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, SyntaxError)
"""What Python, numpy and torch raise for nonsensical names and numbers; a dtype of `,` is a syntax error."""


@dataclass(frozen=True)
class RestoredShard:
    """One rank's state as it was saved, verified."""

    manifest: Manifest
    index: ShardIndex
    data: memoryview

    def trees(self) -> dict[str, Any]:
        """The state trees by file name. Tensors are views of one buffer: copy what must outlive it.

        A separate step, so that the bytes can be fetched before torch is imported.
        """
        return decoded(self.index, self.data)


def decoded(index: ShardIndex, data: memoryview) -> dict[str, Any]:
    """The trees of an index over its bytes. Raises `CorruptCheckpoint` if the index is inconsistent."""

    def read(number: int) -> Any:
        record = index.tensors[number]
        part = data[record.offset : record.offset + record.size_bytes]
        return tensor_from(record.kind, record.dtype, record.shape, part)

    return decode_trees(index, read)


def check_trees(index: ShardIndex) -> None:
    """Check that a restore could build every tree and tensor of an index, without torch and without their bytes.

    Raises `CorruptCheckpoint`.
    """

    def check(number: int) -> None:
        record = index.tensors[number]
        check_leaf(record.kind, record.dtype, record.shape, record.size_bytes)

    decode_trees(index, check, plain=True)


def decode_trees(index: ShardIndex, read: LeafReader, *, plain: bool = False) -> dict[str, Any]:
    """The trees of an index, by file name; see `state_tree.decode`. Raises `CorruptCheckpoint` if they don't decode."""
    try:
        return {name: decode(tree, read, plain=plain) for name, tree in index.trees.items()}
    except _OF_A_TREE as error:
        raise CorruptCheckpoint(f"the state of rank {index.rank} can't be decoded: {error}") from error


def restore_shard(
    store: Store, commit: Commit, rank: int, buffer: Buffer | None = None, *, local: Path | None = None
) -> RestoredShard:
    """Return what `rank` saved in the checkpoint `commit`.

    `local` is a snapshot that a predecessor may have left in this machine's memory (`RunMemory.snapshot`). It is used
    only if every hash matches this checkpoint; otherwise the store is read.

    Raises:
        CorruptCheckpoint: an object is missing, truncated, or differs from its checksum; names the object.
    """
    manifest = load_manifest(store, commit)
    return restore_from(store, manifest, load_rank(store, manifest, rank), buffer, local=local)


def restore_from(
    store: Store, manifest: Manifest, index: ShardIndex, buffer: Buffer | None = None, *, local: Path | None = None
) -> RestoredShard:
    """`restore_shard`, for callers that have already read the records."""
    try:
        data = (buffer or HostBuffer()).reserve(index.size_bytes)
    except (OSError, MemoryError, OverflowError) as error:  # a limit of this machine, not a fault of the checkpoint
        size = f"{index.size_bytes / 2**30:,.1f} GiB"
        raise NoMemory(f"no memory for the {size} of rank {index.rank}: {error}") from error
    if local is None or not _take_local(index, data, local):
        _fetch(store, index, data)  # each chunk against its CRC32C; `verify` also compares each tensor's xxh3
    return RestoredShard(manifest, index, data)


def newest_good(
    commits: Sequence[Commit],
    load: Callable[[Commit], T],
    agree: Callable[[str], list[str]] = lambda fault: [fault] if fault else [],
) -> tuple[T | None, list[tuple[Commit, str]]]:
    """Load the newest checkpoint that is good on every rank.

    Args:
        commits: HEAD's commits, newest first, the same on all ranks.
        load: loads this rank's shard of a commit.
        agree: gathers the faults of all ranks ('' = none) into a list of the real ones; a collective call.

    Returns:
        The shard (None if there are no commits) and the newer, damaged commits, each with its fault.

    Raises:
        NoGoodCheckpoint: there are commits, but all are damaged. Silently starting over would lose them.
    """
    damaged: list[tuple[Commit, str]] = []
    for commit in commits:
        shard, fault = None, ""
        try:
            shard = load(commit)
        except CorruptCheckpoint as error:
            fault = error.message
        faults = agree(fault)
        if not faults and shard is not None:
            return shard, damaged
        damaged.append((commit, "; ".join(faults)))
    if damaged:
        raise NoGoodCheckpoint(
            f"none of the {len(damaged)} committed checkpoints is intact; the newest: {damaged[0][1]}",
            "see `notus-ckpt verify`; restore the bucket's objects, or start a new run with another --name",
        )
    return None, []


def verify(store: Store, commit: Commit, progress: Callable[[int], None] = lambda size_bytes: None) -> Manifest:
    """Read every byte of a checkpoint and compare it with its checksums; raises `CorruptCheckpoint`.

    Holds one shard in memory at a time. `progress` is called with the size of each shard that is good.
    """
    manifest = load_manifest(store, commit)
    buffer = HostBuffer()
    for ref in manifest.shards:
        index = load_index(store, ref)
        data = buffer.reserve(index.size_bytes)
        _fetch(store, index, data)
        _check_tensors(index, data)
        check_trees(index)
        progress(ref.size_bytes)
    return manifest


def verify_presence(store: Store, commit: Commit) -> Manifest:
    """Verify the records of a checkpoint, and that each chunk exists with its size, without reading the chunks.

    For a machine far from the bucket: `verify` would download the whole state. Raises `CorruptCheckpoint`.
    """
    manifest = load_manifest(store, commit)
    for index in parallel_map(lambda ref: load_index(store, ref), manifest.shards, CONCURRENCY):
        folders = {chunk.key.rsplit("/", 1)[0] for chunk in index.chunks}
        sizes = {entry.key: entry.size_bytes for folder in folders for entry in store.list(folder)}
        for chunk in index.chunks:
            if sizes.get(chunk.key) != chunk.size_bytes:
                raise CorruptCheckpoint(
                    f"{store.url}/{chunk.key} has {sizes.get(chunk.key, 'no')} of {chunk.size_bytes} bytes"
                )
    return manifest


def _fetch(store: Store, index: ShardIndex, target: memoryview) -> None:
    """Read all chunks into `target`, in parallel, checking each."""
    jobs = [job for _, job in _jobs(index, target)]
    parallel_map(lambda job: reread(lambda: fetch_chunk(store, *job)), jobs, CONCURRENCY)


def _jobs(index: ShardIndex, target: memoryview) -> Iterator[tuple[int, tuple[Chunk, memoryview]]]:
    """Yield each chunk's position, and the chunk with its part of `target`."""
    position = 0
    for chunk in index.chunks:
        yield position, (chunk, target[position : position + chunk.size_bytes])
        position += chunk.size_bytes


def _take_local(index: ShardIndex, target: memoryview, local: Path) -> bool:
    """Copy a local snapshot into `target`; returns whether it matches `index`.

    Checked after the copy, not before: a zombie on this machine may still write to its buffer.
    """

    def take(job: tuple[Chunk, memoryview, memoryview]) -> None:
        chunk, view, source = job
        view[:] = source
        if crc32c(view) != chunk.crc32c:
            raise CorruptCheckpoint(f"{local} holds another step")

    try:
        source = open_shared(local, index.size_bytes)
        parallel_map(take, [(*job, source[at : at + len(job[1])]) for at, job in _jobs(index, target)], CONCURRENCY)
        _check_tensors(index, target)
    except (OSError, CorruptCheckpoint) as error:
        logger.info("not restored from this machine's memory: %s", error)
        return False
    logger.info("restored from this machine's memory: %s", local)
    return True


def fetch_chunk(store: Store, chunk: Chunk, view: memoryview) -> None:
    """Fill `view` with a chunk (exactly its size), verified; raises `CorruptCheckpoint`."""
    checksum = _Crc32c()
    try:
        size_bytes = store.read_into(chunk.key, view, checksum.add)
    except ObjectMissing as error:
        raise CorruptCheckpoint(f"{store.url}/{chunk.key} is missing") from error
    if size_bytes != chunk.size_bytes:  # an object that has grown is damaged too
        raise CorruptCheckpoint(f"{store.url}/{chunk.key} has {size_bytes} bytes instead of {chunk.size_bytes}")
    if checksum.value != chunk.crc32c:
        raise CorruptCheckpoint(f"{store.url}/{chunk.key} differs from its CRC32C")


class _Crc32c:
    """The CRC32C of pieces as they arrive; an empty piece resets it (see `Store.read_into`)."""

    value = 0

    def add(self, piece: memoryview) -> None:
        self.value = crc32c(piece, self.value) if len(piece) else 0


def _check_tensors(index: ShardIndex, data: memoryview) -> None:
    for record in index.tensors:
        view = data[record.offset : record.offset + record.size_bytes]
        if view.nbytes != record.size_bytes or xxhash.xxh3_128_hexdigest(view) != record.xxh3:
            raise CorruptCheckpoint(f"the tensor {record.name} of rank {index.rank} differs from its xxh3")


def differing_tensors(one: ShardIndex, other: ShardIndex) -> list[str]:
    """Names of tensors and trees that differ between two shards, compared by hash without reading any tensor."""
    mine = {record.name: record for record in one.tensors}
    theirs = {record.name: record for record in other.tensors}
    names = [
        name
        for name in sorted(mine.keys() | theirs.keys())
        if name not in mine
        or name not in theirs
        or (mine[name].dtype, mine[name].shape, mine[name].xxh3)
        != (theirs[name].dtype, theirs[name].shape, theirs[name].xxh3)
    ]
    return names + [name for name in sorted(one.trees) if one.trees[name] != other.trees.get(name)]
