"""Both hashes in one pass are the hashes."""

from __future__ import annotations

from unittest.mock import patch

import crc32c
import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.save.shard_upload import checksums
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot


@given(st.lists(st.integers(0, 300), max_size=8), st.sampled_from([1, 64, 100, 10_000]), st.sampled_from([1, 7, 4096]))
def test_checksums(sizes: list[int], chunk_bytes: int, hashed_bytes: int) -> None:
    generator = np.random.default_rng(len(sizes))
    trees = {"s": [generator.integers(0, 255, size, dtype=np.uint8) for size in sizes]}
    snapshot = Snapshot.take(trees, HostBuffer())
    with patch("checkpoints.save.shard_upload.HASHED_BYTES", hashed_bytes):
        crcs, digests = checksums(snapshot, chunk_bytes)
    data = bytes(snapshot.data)
    assert crcs == [crc32c.crc32c(data[start : start + chunk_bytes]) for start in range(0, len(data), chunk_bytes)]
    assert digests == [xxhash.xxh3_128_hexdigest(array.tobytes()) for array in trees["s"]]
