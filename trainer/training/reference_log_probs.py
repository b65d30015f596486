"""Log-probabilities of the reference model, computed once and kept in the run's folder of the bucket.

DPO compares the policy with a model that never changes. If its values are computed before training, that model needs no
memory and no forward pass in any step. The rows are processed in chunks, each a separate object: an attempt that is
preempted meanwhile leaves the finished chunks, and every later attempt reads them. A chunk's content depends only on
its key: the same batches of the same rows, in the same order, whatever the number of processes.

A chunk is a hash (xxh3-128) and the values, little-endian float32: chosen and rejected, one pair per row. A damaged
chunk is computed again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from checkpoints.errors import AlreadyExists, NotusError, ObjectMissing
from checkpoints.storage.base import Store
from checkpoints.util.parallel import parallel_map

logger = logging.getLogger(__name__)

CHUNK_BATCHES = 64
"""Batches per object: about 512 pairs, a minute of work for a 7B model on 8 GPUs."""
HASH_BYTES = 16
FOLDER = "cache/reference"
CONNECTIONS = 16
"""Concurrent reads of chunks: 60,000 pairs are 120 chunks."""
Values = NDArray[np.float32]
"""[rows, 2]: chosen and rejected."""


def reference_key(identity: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The key of a data set's log-probabilities: what computes them, and the token ids of every row in order."""
    digest = xxhash.xxh3_128(json.dumps(identity, sort_keys=True).encode())
    for row in rows:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            ids = np.asarray(row[name], dtype="<i4")
            digest.update(len(ids).to_bytes(4, "little"))
            digest.update(ids.tobytes())
    return digest.hexdigest()


class ChunkPrefetch:
    """Reads the chunks of a run during the imports, before the data set is tokenized and their keys are known."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self._read, name="log-probs", daemon=True)
        self._thread.start()

    def take(self, name: str) -> bytes | None:
        """The object's bytes, once; None if it didn't exist."""
        self._thread.join()
        return self._found.pop(name, None)

    def _read(self) -> None:
        try:
            names = [entry.key for entry in self._store.list(FOLDER)]
            read = parallel_map(lambda name: self._store.get(name).data, names, CONNECTIONS)
            self._found = dict(zip(names, read, strict=True))
        except NotusError as error:
            logger.info("can't prefetch reference log-probs: %s", error.message)


class ReferenceCache:
    """The chunks of one data set."""

    def __init__(self, store: Store, key: str, rows: int, batch: int, prefetched: ChunkPrefetch | None = None) -> None:
        """`rows`: in total; `batch`: rows per forward pass."""
        self._store, self._key, self.rows, self.batch, self._prefetched = store, key, rows, batch, prefetched
        self.done = 0
        """Rows whose values are known so far."""

    def chunks(self) -> Iterator[range]:
        """The rows of each chunk."""
        size = self.batch * CHUNK_BATCHES
        return (range(start, min(start + size, self.rows)) for start in range(0, self.rows, size))

    def batches(self, chunk: range) -> list[range]:
        """The rows of each forward pass of a chunk."""
        return [
            range(start, min(start + self.batch, chunk.stop)) for start in range(chunk.start, chunk.stop, self.batch)
        ]

    def read_all(self) -> list[Values | None]:
        """The values of each chunk, see `read`; reads several at once."""
        return parallel_map(self.read, self.chunks(), CONNECTIONS)

    def read(self, chunk: range) -> Values | None:
        """The values of a chunk; None if it is missing or damaged."""
        data = self._prefetched.take(self._name(chunk)) if self._prefetched else None
        try:
            if data is None:
                data = self._store.get(self._name(chunk)).data
        except ObjectMissing:
            return None
        checksum, values = data[:HASH_BYTES], data[HASH_BYTES:]
        if xxhash.xxh3_128(values).digest() != checksum or len(values) != len(chunk) * 2 * 4:
            logger.warning("%s is damaged: computing it again", self._name(chunk))
            self._store.delete(self._name(chunk))
            return None
        return np.frombuffer(values, dtype="<f4").reshape(len(chunk), 2)

    def write(self, chunk: range, values: Values) -> None:
        """Store the values of a chunk. If another attempt has stored it, that is kept: it is the same."""
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        try:
            self._store.create(self._name(chunk), xxhash.xxh3_128(data).digest() + data)
        except AlreadyExists:
            logger.info("%s already exists", self._name(chunk))

    def _name(self, chunk: range) -> str:
        return f"{FOLDER}/{self._key}/{chunk.start:09d}-{chunk.stop:09d}"


def compute(
    cache: ReferenceCache,
    forward: Callable[[range], Values],
    *,
    rank: int,
    world_size: int,
    share: Callable[[Any], list[Any]],
    first: Callable[[Any], Any],
    done: Callable[[int], None] = lambda rows: None,
) -> Values:
    """All rows' values, on every rank. Collective.

    Args:
        cache: where they are kept; rank 0 reads and writes.
        forward: returns log-probabilities of these rows; every rank has to call it the same number of times (ZeRO-3
            gathers the weights in it).
        rank: this process's rank.
        world_size: the number of ranks.
        share: returns every rank's value, by rank.
        first: returns rank 0's value.
        done: called with the number of finished rows.
    """
    stored = first(cache.read_all() if rank == 0 else [])
    found = []
    for chunk, values in zip(cache.chunks(), stored, strict=True):
        if values is None:
            values = _compute_chunk(cache, chunk, forward, rank, world_size, share)
            if rank == 0:
                cache.write(chunk, values)
        found.append(values)
        cache.done = chunk.stop
        done(chunk.stop)
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.float32)


def _compute_chunk(
    cache: ReferenceCache,
    chunk: range,
    forward: Callable[[range], Values],
    rank: int,
    world_size: int,
    share: Callable[[Any], list[Any]],
) -> Values:
    """Compute a chunk, with batches dealt out in order. A rank without one repeats the last one and discards it."""
    batches = cache.batches(chunk)
    mine: dict[int, Values] = {}
    for start in range(0, len(batches), world_size):
        number = start + rank
        values = forward(batches[min(number, len(batches) - 1)])
        cache.done = batches[min(start + world_size, len(batches)) - 1].stop
        if number < len(batches):
            mine[number] = values
    together = {number: values for part in share(mine) for number, values in part.items()}
    return np.concatenate([together[number] for number in range(len(batches))])
