"""A rank's snapshot on its way into the store: immutable chunks, then the index that names them."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import crc32c

from checkpoints.errors import AlreadyExists
from checkpoints.manifest import Chunk, ShardIndex, ShardRef, sha256
from checkpoints.snapshot import Snapshot
from checkpoints.store import Buffer, Store

CHUNK_BYTES = 64 << 20
CONCURRENCY = 4


def attempt_prefix(epoch: int, step: int) -> str:
    """A data folder that no other attempt shares: a zombie's uploads can't touch its successor's."""
    return f"data/e{epoch:06d}-s{step:08d}-{uuid.uuid4().hex[:12]}"


def put_once(store: Store, key: str, data: Buffer) -> None:
    """Create an object under a key that only we use.

    A create whose reply was lost is retried by the client and then finds its own object: that is a success if the
    bytes are the same. Raises `AlreadyExists` if they differ.
    """
    try:
        store.create(key, data)
    except AlreadyExists:
        if store.get(key).data != bytes(data):
            raise


def upload_shard(
    store: Store,
    prefix: str,
    rank: int,
    snapshot: Snapshot,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    concurrency: int = CONCURRENCY,
) -> ShardRef:
    """Upload `snapshot` below `prefix` and return what the manifest needs to know of it.

    Chunks are sent from the snapshot's memory, up to `concurrency` at once; checksums are computed on the way.
    Raises `StoreError` or `BucketUnusable`; what was uploaded until then is garbage that nothing refers to.
    """

    def send(position: int) -> Chunk:
        view = snapshot.data[position : position + chunk_bytes]
        key = f"{prefix}/r{rank:05d}/c{position // chunk_bytes:05d}"
        put_once(store, key, view)
        return Chunk(key=key, size_bytes=view.nbytes, crc32c=crc32c.crc32c(view))

    with ThreadPoolExecutor(concurrency) as pool:
        chunks = tuple(pool.map(send, range(0, snapshot.data.nbytes, chunk_bytes)))
    index = ShardIndex(
        rank=rank,
        size_bytes=snapshot.data.nbytes,
        chunks=chunks,
        tensors=snapshot.tensors,
        trees=snapshot.trees,
    )
    data = index.to_json()
    key = f"{prefix}/r{rank:05d}/index.json"
    put_once(store, key, data)
    return ShardRef(rank=rank, index=key, sha256=sha256(data), size_bytes=snapshot.data.nbytes)
