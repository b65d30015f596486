"""The checkpoint engine against the physical limit: `make bench` prints one JSON object.

Each figure is the median of several rounds, and a ratio to a reference that is measured in the same round: a warm memcpy of
the same bytes, a raw socket to the same sink. CPU seconds where wall time is noisy. No figure is asserted here.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.head import Lease, Retention, Writer
from checkpoints.manifest import Chunk, Manifest, ShardIndex, sha256
from checkpoints.restore import _fetch
from checkpoints.run import open_run
from checkpoints.saver import Saver
from checkpoints.shm import RunMemory, SharedBuffer
from checkpoints.snapshot import HostBuffer, Plan, Snapshot
from checkpoints.store import Store, open_store
from checkpoints.upload import CHUNK_BYTES, INDEXES, upload_shard, uploaded_shards
from checkpoints.uploader import Setup
from tests.bench.link import narrow_link
from tests.seaweed import seaweed

MIB = 1 << 20
STATE_BYTES = 512 * MIB
TENSORS = 64
CONNECTIONS = 4


class Cost:
    """Wall and CPU seconds of a block."""

    def __enter__(self) -> Cost:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *args: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def measured(block: Callable[[], Any]) -> Cost:
    with Cost() as cost:
        block()
    return cost


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def state(size_bytes: int = STATE_BYTES) -> dict[str, torch.Tensor]:
    numel = size_bytes // 4 // TENSORS
    return {f"t{i}": torch.full((numel,), float(i)) for i in range(TENSORS)}


class Memcpy:
    """A warm copy of every tensor into memory that was touched before."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.sources = [tensor.numpy() for tensor in tensors.values()]
        self.targets = [np.empty_like(source) for source in self.sources]
        self.copy()

    def copy(self) -> None:
        for source, target in zip(self.sources, self.targets, strict=True):
            np.copyto(target, source)


def bench_snapshot(rounds: int = 9) -> dict[str, float]:
    """CPU time of a snapshot / CPU time of a warm memcpy; peers beside it."""
    tensors = state()
    memcpy = Memcpy(tensors)
    buffer = SharedBuffer(RunMemory("bench").snapshot("w", 0))
    Snapshot.take({"s": tensors}, buffer)
    ratios, clones, saves = [], [], []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for _ in range(rounds):
            reference = measured(memcpy.copy).cpu
            ratios.append(measured(lambda: Snapshot.take({"s": tensors}, buffer)).cpu / reference)
            clones.append(measured(lambda: [tensor.clone() for tensor in tensors.values()]).cpu / reference)
            saves.append(measured(lambda: torch.save(tensors, f"{folder}/x")).cpu / reference)
    RunMemory("bench").forget("w")
    return {
        "snapshot_cpu_to_memcpy": median(ratios),
        "peer_clone_cpu_to_memcpy": median(clones),
        "peer_torch_save_cpu_to_memcpy": median(saves),
    }


def bench_dcp(rounds: int = 5) -> dict[str, float]:
    """How long torch DCP's async_save blocks / wall time of a warm memcpy."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    tensors = state()
    memcpy = Memcpy(tensors)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29517", rank=0, world_size=1)
    blocked = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for index in range(rounds):
            reference = measured(memcpy.copy).wall
            started = time.perf_counter()
            future = dcp.async_save({"s": tensors}, checkpoint_id=f"{folder}/{index % 2}")
            blocked.append((time.perf_counter() - started) / reference)
            future.result()
    dist.destroy_process_group()
    return {"peer_dcp_async_save_blocks_to_memcpy": median(blocked)}


@contextlib.contextmanager
def saver_on(bucket: str, tensors_bytes: int, *, commits: bool = True) -> Iterator[Saver]:
    """A rank's saver; with `commits` off it is the second of two ranks, which only uploads: the C sink has no HEAD."""
    run = f"bench-{uuid.uuid4().hex[:8]}"
    store = open_run(bucket, run)
    writer = Writer(id=uuid.uuid4().hex, host="bench", pid=os.getpid())
    setup = Setup(
        bucket=bucket,
        run=run,
        rank=0 if commits else 1,
        world_size=1 if commits else 2,
        writer_id=writer.id,
        epoch=Lease.claim(store, writer, lease_s=3600).head.epoch if commits else 1,
        retention=Retention(newest=1),
    )
    buffer = SharedBuffer(RunMemory(store.url).snapshot(writer.id, setup.rank))
    buffer.reserve(tensors_bytes + 4096)
    saver = Saver(setup, buffer)
    yield saver
    saver.close()
    RunMemory(store.url).forget(writer.id)


def seconds_of_a_product(going: Callable[[], bool]) -> float:
    """The same arithmetic over and over while `going`."""
    matrix = torch.randn(256, 256)
    products, started = 0, time.perf_counter()
    while going():
        torch.mm(matrix, matrix)
        products += 1
    return (time.perf_counter() - started) / products


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until


LINK_BYTES_PER_SECOND = 500e6


def bench_training(folder: Path) -> dict[str, float]:
    """Visible stall of a save / warm memcpy, and the slowdown of training while an upload runs.

    The upload goes over S3 to the sink, as fast as it can and over a link of 4 Gbit/s; only arithmetic beside it counts.
    The sink is on the same cores: its own CPU time is in the slowdown.
    """
    tensors = state()
    memcpy = Memcpy(tensors)
    with uploading(folder) as saver:
        stall = stall_to_memcpy(saver, tensors, memcpy)
    with uploading(folder) as saver:
        slowdown = slowdown_while_uploading(saver, tensors)
    with uploading(folder, LINK_BYTES_PER_SECOND) as saver:
        slowdown_of_link = slowdown_while_uploading(saver, tensors)
    return {
        "stall_to_memcpy": stall,
        "slowdown_while_uploading": slowdown,
        "slowdown_while_uploading_500_mb_per_s": slowdown_of_link,
    }


@contextlib.contextmanager
def uploading(folder: Path, bytes_per_second: float = 0) -> Iterator[Saver]:
    """A saver on a sink, whose uploader has imported what it needs."""
    with sink(folder, bytes_per_second) as port:
        point_to(port)
        with saver_on("s3://bench", STATE_BYTES, commits=False) as saver:
            saver.save(1, {"s": state(MIB)})
            finish(saver)
            yield saver


def finish(saver: Saver) -> None:
    saver.wait()
    assert saver.failure is None, saver.failure


def stall_to_memcpy(saver: Saver, tensors: dict[str, torch.Tensor], memcpy: Memcpy, rounds: int = 5) -> float:
    copy_s = statistics.median(measured(memcpy.copy).wall for _ in range(5))
    stalls = []
    for number in range(2, rounds + 2):
        saver.take_stall_s()
        saver.save(number, {"s": tensors})
        seconds_of_a_product(for_seconds(2.5 * copy_s))  # forward and backward take at least twice the memcpy
        saver.wait_copied()
        for tensor in tensors.values():  # the optimizer step
            tensor[0] += 1
        stalls.append(saver.take_stall_s() / copy_s)
        finish(saver)
    return median(stalls)


def slowdown_while_uploading(saver: Saver, tensors: dict[str, torch.Tensor], rounds: int = 7) -> float:
    slowdowns = []
    for number in range(2, rounds + 2):
        alone = seconds_of_a_product(for_seconds(0.5))
        saver.save(number, {"s": tensors})
        saver.wait_copied()
        slowdowns.append(seconds_of_a_product(saver.poll) / alone - 1)
        finish(saver)
    return median(slowdowns)


@contextlib.contextmanager
def sink(folder: Path, bytes_per_second: float = 0) -> Iterator[int]:
    """The C sink on loopback; yields its port."""
    binary = folder / "sink"
    source = Path(__file__).with_name("sink.c")
    subprocess.run(["gcc", "-O2", "-pthread", str(source), "-o", str(binary)], check=True)
    port_file = folder / f"port-{uuid.uuid4().hex}"
    process = subprocess.Popen([str(binary), str(port_file), str(bytes_per_second)])
    while not port_file.exists() or not port_file.read_text().endswith("\n"):
        time.sleep(0.02)
    try:
        yield int(port_file.read_text())
    finally:
        process.kill()
        process.wait()


def point_to(port: int) -> None:
    """Make the sink this process's S3, and its children's."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_REGION": "us-east-1",
    }


def raw_put(port: int, data: memoryview) -> None:
    """PUTs of the same chunks over plain sockets, as many connections."""

    def send(position: int) -> None:
        view = data[position : position + CHUNK_BYTES]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"PUT /x/{position} HTTP/1.1\r\nContent-Length: {view.nbytes}\r\n\r\n".encode())
            connection.sendall(view)
            connection.recv(4096)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, range(0, data.nbytes, CHUNK_BYTES)))


def raw_get(port: int, target: memoryview) -> None:
    """Range GETs over plain sockets, received into place."""

    def receive(position: int) -> None:
        view = target[position : position + CHUNK_BYTES]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"GET /x HTTP/1.1\r\nRange: bytes=0-{view.nbytes - 1}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            rest = head.split(b"\r\n\r\n", 1)[1]
            view[: len(rest)] = rest
            got = len(rest)
            while got < view.nbytes:
                got += connection.recv_into(view[got:])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(receive, range(0, target.nbytes, CHUNK_BYTES)))


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
    import crc32c
    import xxhash

    from checkpoints.manifest import TensorRecord

    served = bytearray(CHUNK_BYTES)
    raw_get(port, memoryview(served))
    size_bytes -= size_bytes % CHUNK_BYTES
    checksum, whole = crc32c.crc32c(served), xxhash.xxh3_128()
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


def bench_plan_memory() -> dict[str, float]:
    """Bytes that a snapshot needs beside the state: the buffer / the state's own size."""
    plan = Plan.of({"s": state()})
    return {"buffer_to_state": round(plan.size_bytes / STATE_BYTES, 4)}


def bench_peers() -> dict[str, float]:
    """In a process of its own: DeepSpeed changes the one that it is imported into."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.peers"], capture_output=True, text=True, check=True)
    ratios: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return ratios


def main() -> None:
    from tests.bench.memory import bench_memory
    from tests.bench.restart import bench_restart

    torch.set_num_threads(1)  # as each rank of the trainer does on a CPU
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for server in ("weed", "weed-behind-a-link"):
            (folder / server).mkdir()
        results: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "state_mib": STATE_BYTES // MIB,
        }
        for bench in (
            bench_snapshot,
            bench_dcp,
            lambda: bench_training(folder),
            lambda: bench_transfer(folder),
            lambda: bench_emergency(folder / "weed-behind-a-link"),
            lambda: bench_commit(folder / "weed"),
            bench_plan_memory,
            bench_memory,
            bench_peers,
            bench_restart,
        ):
            results |= bench()
            sys.stderr.write(f"bench: {list(results)[-1]} done\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
