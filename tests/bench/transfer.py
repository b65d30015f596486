"""Upload, restore and an emergency save against plain sockets and the bandwidth of a link."""

from __future__ import annotations

import os
from pathlib import Path

from checkpoints.records.manifest import Chunk, ShardIndex
from checkpoints.restore.shard_restore import _fetch
from checkpoints.save.shard_upload import CHUNK_BYTES, upload_shard
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot
from checkpoints.storage.backend import open_store
from tests.bench.link import narrow_link
from tests.bench.measure import MIB, Cost, measured, median, state
from tests.bench.sink import CONNECTIONS, point_to, raw_get, raw_put, saver_on, sink
from tests.bench.training import finish
from tests.support.seaweed import seaweed


def bench_transfer(folder: Path, rounds: int = 7) -> dict[str, float]:
    """Upload and restore through the product's code / raw sockets to the same sink.

    The raw sockets receive into memory that was touched before, and so does our restore; the `cold` one into fresh memory,
    as in the first restore of a process.
    """
    snapshot = Snapshot.take({"s": state()}, HostBuffer())
    up_speed, up_cpu, down_speed, down_cpu, cold_speed, cold_cpu, naive_cpu = [], [], [], [], [], [], []
    with sink(folder) as port:
        point_to(port)
        store = open_store("s3://bench/x")
        index = served_index(port, snapshot.data.nbytes)
        target = HostBuffer().reserve(index.size_bytes)
        target[:] = bytes(index.size_bytes)

        for number in range(rounds):
            raw = measured(lambda: raw_put(port, snapshot.data))
            ours = measured(lambda n=number: upload_shard(store, f"data/{n}", 0, snapshot, concurrency=CONNECTIONS))
            up_speed.append(raw.wall / ours.wall)
            up_cpu.append(ours.cpu / raw.cpu)
            raw = measured(lambda: raw_get(port, target))
            ours = measured(lambda: _fetch(store, index, target))
            down_speed.append(raw.wall / ours.wall)
            down_cpu.append(ours.cpu / raw.cpu)
            ours = measured(lambda: _fetch(store, index, HostBuffer().reserve(index.size_bytes)))
            cold_speed.append(raw.wall / ours.wall)
            cold_cpu.append(ours.cpu / raw.cpu)
            naive = measured(lambda: [store.get_range(chunk.key, 0, chunk.size_bytes) for chunk in index.chunks])
            naive_cpu.append(naive.cpu / raw.cpu)
    return {
        "upload_speed_to_raw": median(up_speed),
        "upload_cpu_to_raw": median(up_cpu),
        "restore_speed_to_raw": median(down_speed),
        "restore_cpu_to_raw": median(down_cpu),
        "cold_restore_speed_to_raw": median(cold_speed),
        "cold_restore_cpu_to_raw": median(cold_cpu),
        "peer_obstore_get_range_cpu_to_raw": median(naive_cpu),
    }


def served_index(port: int, size_bytes: int) -> ShardIndex:
    """A shard index of what the sink serves: its first bytes, whatever the key."""
    import xxhash
    from awscrt.checksums import crc32c

    from checkpoints.records.manifest import TensorRecord

    served = bytearray(CHUNK_BYTES)
    raw_get(port, memoryview(served))
    size_bytes -= size_bytes % CHUNK_BYTES
    checksum, whole = crc32c(served), xxhash.xxh3_128()
    for _ in range(size_bytes // CHUNK_BYTES):
        whole.update(served)
    tensor = TensorRecord(
        name="t",
        kind="torch",
        dtype="uint8",
        shape=(size_bytes,),
        offset=0,
        size_bytes=size_bytes,
        xxh3=whole.hexdigest(),
    )
    chunks = tuple(
        Chunk(key=f"c{i}", size_bytes=CHUNK_BYTES, crc32c=checksum) for i in range(size_bytes // CHUNK_BYTES)
    )
    return ShardIndex(rank=0, size_bytes=size_bytes, chunks=chunks, tensors=(tensor,), trees={})


def bench_emergency(folder: Path, rounds: int = 3) -> dict[str, float]:
    """A whole save through a narrow link: copy, upload, index, manifest and HEAD / bytes through bandwidth.

    To a real S3 server, which needs 11 CPU-s/GB: the link is so narrow that it does not wait for the server's core.
    """
    bandwidth, size_bytes = 25e6, 128 * MIB
    tensors = state(size_bytes)
    ratios = []
    with seaweed(folder) as server, narrow_link(int(server.endpoint.rsplit(":", 1)[1]), bandwidth) as port:
        server.client().create_bucket(Bucket="bench")
        os.environ |= server.environment() | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        with saver_on("s3://bench", size_bytes) as saver:
            saver.save(1, {"s": state(MIB)})
            finish(saver)  # the uploader has imported what it needs
            for number in range(2, rounds + 2):
                with Cost() as cost:
                    saver.save(number, {"s": tensors})
                    finish(saver)
                ratios.append(cost.wall / (size_bytes / bandwidth))
    return {"emergency_save_to_bytes_per_bandwidth": median(ratios)}
