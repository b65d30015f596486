"""Log-probabilities of the reference model, computed once and kept in the run's folder of the bucket.

DPO compares the policy with a model that never changes. Computed before the training, that model needs no memory and
no forward pass in any step. The rows are worked off in chunks, each an object of its own: an attempt that is preempted
in the middle leaves the chunks that were done, and every later attempt reads all of them. What a chunk holds depends
on nothing but its key: the same batches of the same rows, in the same order, whatever the number of processes.

A chunk is a hash (xxh3-128) and the values, little-endian float32: chosen, rejected, one pair a row. One that is
damaged is computed again.
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
"""Of one object: some 512 pairs, a minute of work for a 7B model on 8 GPUs."""
HASH_BYTES = 16
FOLDER = "cache/reference"
CONNECTIONS = 16
"""To the bucket, to read chunks: 60,000 pairs are 120 of them."""
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


class Ahead:
    """The chunks of a run, read beside the imports: which data set they are of is known only when it is tokenised."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self._read, name="log-probs", daemon=True)
        self._thread.start()

    def take(self, name: str) -> bytes | None:
        """The object's bytes, once; None where they weren't there."""
        self._thread.join()
        return self._found.pop(name, None)

    def _read(self) -> None:
        try:
            names = [entry.key for entry in self._store.list(FOLDER)]
            read = parallel_map(lambda name: self._store.get(name).data, names, CONNECTIONS)
            self._found = dict(zip(names, read, strict=True))
        except NotusError as error:
            logger.info("no reference log-probs in advance: %s", error.message)


class ReferenceCache:
    """The chunks of one data set."""

    def __init__(self, store: Store, key: str, rows: int, batch: int, ahead: Ahead | None = None) -> None:
        """`rows` in all, `batch` of them in each forward pass."""
        self._store, self._key, self.rows, self.batch, self._ahead = store, key, rows, batch, ahead
        self.done = 0
        """Rows whose values are known by now."""

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
        """Of each chunk, see `read`; several at once."""
        return parallel_map(self.read, self.chunks(), CONNECTIONS)

    def read(self, chunk: range) -> Values | None:
        """What was computed; None where it was not, or is damaged."""
        data = self._ahead.take(self._name(chunk)) if self._ahead else None
        try:
            if data is None:
                data = self._store.get(self._name(chunk)).data
        except ObjectMissing:
            return None
        told, values = data[:HASH_BYTES], data[HASH_BYTES:]
        if xxhash.xxh3_128(values).digest() != told or len(values) != len(chunk) * 2 * 4:
            logger.warning("%s is damaged: it is computed again", self._name(chunk))
            self._store.delete(self._name(chunk))
            return None
        return np.frombuffer(values, dtype="<f4").reshape(len(chunk), 2)

    def write(self, chunk: range, values: Values) -> None:
        """Keep what was computed. Another attempt's word stands where there is one: it is the same."""
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        try:
            self._store.create(self._name(chunk), xxhash.xxh3_128(data).digest() + data)
        except AlreadyExists:
            logger.info("%s is there already", self._name(chunk))

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
        forward: log-probabilities of these rows; every rank has to call it the same number of times (ZeRO-3 gathers
            the weights in it).
        rank: this process's rank.
        world_size: the number of ranks.
        share: every rank's value, by rank.
        first: rank 0's value.
        done: called with the number of rows that are there.
    """
    there = first(cache.read_all() if rank == 0 else [])
    found = []
    for chunk, values in zip(cache.chunks(), there, strict=True):
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
    """The batches are dealt out in order. A rank without one left does the last one again, and it is not counted."""
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
