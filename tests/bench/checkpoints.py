"""The checkpoint engine against the physical limit: `make bench` prints one JSON object.

Each figure is the median of several rounds, and a ratio to a reference that is measured in the same round: a warm memcpy of
the same bytes, a raw socket to the same sink. CPU seconds where wall time is noisy. No figure is asserted here.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.snapshot.snapshot import Plan, Snapshot
from tests.bench.commit import bench_commit
from tests.bench.measure import MIB, STATE_BYTES, Memcpy, measured, median, state
from tests.bench.training import bench_training
from tests.bench.transfer import bench_emergency, bench_transfer


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
