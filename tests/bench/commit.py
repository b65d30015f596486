"""How long a commit takes with many ranks, on a real S3 server."""

from __future__ import annotations

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkpoints.commit.head import Lease, Writer
from checkpoints.commit.retention import Retention
from checkpoints.records.manifest import Chunk, Manifest, ShardIndex, sha256
from checkpoints.save.shard_upload import CHUNK_BYTES, INDEXES, uploaded_shards
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Store
from tests.bench.measure import measured, median
from tests.support.seaweed import seaweed


def bench_commit(folder: Path, rounds: int = 5) -> dict[str, Any]:
    """Listing, manifest and HEAD for many simulated ranks on a real S3 server, 98 chunk objects each; medians.

    The chunks have a byte instead of 64 MiB: nothing reads them here, but the listing goes over all of them.
    """
    times: dict[str, float] = {}
    with seaweed(folder) as server:
        os.environ |= server.environment()
        server.client().create_bucket(Bucket="bench")
        for ranks in (64, 256, 1024):
            store = open_store("s3://bench/commit", f"r{ranks}")
            lease = Lease.claim(store, Writer(id=uuid.uuid4().hex, host="bench", pid=1), lease_s=3600)
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda rank, s=store: put_shard(s, "data/x", rank), range(ranks)))
            times[f"{ranks}_ranks_{ranks * CHUNKS}_chunks_s"] = median(
                [
                    measured(lambda n=step, s=store, on=lease, r=ranks: commit(s, on, r, n)).wall
                    for step in range(rounds)
                ]
            )
    return {"commit": times}


CHUNKS = 98
"""Of each simulated rank: 100,000 of 1,024 ranks."""


def put_shard(store: Store, prefix: str, rank: int) -> None:
    folder = f"{prefix}/r{rank:05d}"
    chunks = tuple(Chunk(key=f"{folder}/c{i:05d}", size_bytes=CHUNK_BYTES, crc32c=i) for i in range(CHUNKS))
    for chunk in chunks:
        store.put(chunk.key, b"x")
    size_bytes = CHUNKS * CHUNK_BYTES
    data = ShardIndex(rank=rank, size_bytes=size_bytes, chunks=chunks, tensors=(), trees={}).to_json()
    store.create(f"{prefix}/{INDEXES}/r{rank:05d}-{size_bytes}-{sha256(data)}.json", data)


def commit(store: Store, lease: Lease, ranks: int, step: int) -> None:
    """What rank 0's uploader does once all ranks are done."""
    shards = uploaded_shards(store, "data/x")
    assert len(shards) == ranks
    manifest = Manifest(
        run="bench",
        step=step,
        epoch=1,
        world_size=ranks,
        created_at=datetime.now(UTC),
        reason="interval",
        fingerprint={},
        shards=tuple(shards),
    )
    lease.commit(manifest, Retention(newest=2))
