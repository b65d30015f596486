"""What a save needs beside the training: the snapshot's buffer and the uploader, at its peak, on a real S3 server."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from checkpoints.save.shard_upload import CHUNK_BYTES, CONCURRENCY
from tests.bench.measure import STATE_BYTES, state
from tests.bench.sink import saver_on
from tests.support.seaweed import seaweed

ROUNDS = 3


@contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """Watches the private memory of a process (shared pages are the snapshot, counted once); [peak] at the end."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            peak[0] = max(peak[0], process.memory_full_info().uss)
            time.sleep(0.003)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def bench_memory() -> dict[str, float]:
    """(snapshot + what the uploader adds at its peak) / (snapshot + concurrency x chunk)."""
    tensors = state()
    extra = 0
    with tempfile.TemporaryDirectory() as name, seaweed(Path(name)) as server:
        os.environ |= server.environment()
        server.client().create_bucket(Bucket="bench")
        with saver_on("s3://bench/memory", STATE_BYTES) as saver:
            process = psutil.Process(saver.uploader_pid)
            time.sleep(3)  # its imports are no part of a save
            idle = process.memory_full_info().uss
            for number in range(1, ROUNDS + 1):
                with peak_of(process) as peak:
                    saver.save(number, {"s": tensors})
                    saver.wait()
                assert saver.failure is None, saver.failure
                extra = max(extra, peak[0] - idle)
    allowed = STATE_BYTES + CONCURRENCY * CHUNK_BYTES
    return {"peak_memory_to_snapshot_and_chunks": round((STATE_BYTES + extra) / allowed, 3)}
