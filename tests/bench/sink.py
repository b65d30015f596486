"""An object store that costs nothing, plain sockets to it, and a saver on it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkpoints.commit.head import Lease, Writer
from checkpoints.commit.retention import Retention
from checkpoints.run_log.run_record import open_run
from checkpoints.save.saver import Saver
from checkpoints.save.shard_upload import CHUNK_BYTES
from checkpoints.save.uploader_messages import Setup
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer

CONNECTIONS = 4


@contextlib.contextmanager
def sink(folder: Path, bytes_per_second: float = 0, *, yields: bool = False) -> Iterator[int]:
    """The C sink on loopback; yields its port. `yields`: it takes only what nobody else wants of the cores."""
    binary = folder / "sink"
    source = Path(__file__).with_name("sink.c")
    subprocess.run(["gcc", "-O2", "-pthread", str(source), "-o", str(binary)], check=True)
    port_file = folder / f"port-{uuid.uuid4().hex}"
    command = ["nice", "-n", "19"] if yields else []
    process = subprocess.Popen([*command, str(binary), str(port_file), str(bytes_per_second)])
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
