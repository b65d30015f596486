"""The checkpoint engine and determinism on an NVIDIA GPU: `make bench-gpu` prints one JSON object.

Each figure is a median, and a ratio to a reference of the same run: a copy into memory that CUDA pinned itself, the same
training without what is measured. Trainings are real runs of the trainer, in processes of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.snapshot.snapshot import Plan
from tests.bench.measure import MIB, TENSORS, median
from tests.gpu.workload import layers_of_7b, make_model, make_pairs, write_recipe
from trainer.config.memory_estimate import IN_ORDER, need_of
from trainer.config.model_shapes import Shape
from trainer.config.recipe import load_recipe
from trainer.devices.device_copy import copy_scope, pinning

STATE_BYTES = 4096 * MIB
"""A rank's share of a 7B model's state on 8 GPUs is 7 GB with RMSprop."""
STEPS, WARM_STEPS = 8, 3
MAX_LENGTH = 1024
PAIRS_A_STEP = 8
"""Both as in notus-7b-dpo."""


def seconds_of(block: Callable[[], Any]) -> float:
    """With everything that was queued on the GPU."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    block()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def bench_snapshot(rounds: int = 7) -> dict[str, float]:
    """Wall time of a snapshot, and how much it slows the training's kernels down, each against the raw copy."""
    state = {f"t{i}": torch.full((STATE_BYTES // 4 // TENSORS,), float(i), device="cuda") for i in range(TENSORS)}
    plan = Plan.of({"s": state})
    memory = RunMemory("bench-gpu")
    buffers = [SharedBuffer(memory.snapshot("w", 0), pin=pinning("cuda")), SharedBuffer(memory.snapshot("w", 1))]
    ours, pageable = (buffer.reserve(plan.size_bytes) for buffer in buffers)
    raw = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in state.values()]

    def raw_copy() -> None:
        for target, source in zip(raw, state.values(), strict=True):
            target.copy_(source, non_blocking=True)

    def snapshot(memory: memoryview) -> None:
        with copy_scope("cuda")():
            plan.copy(memory)

    snapshot(pageable)
    ratios, unpinned, raws = [], [], []
    for _ in range(rounds):
        raws.append(seconds_of(raw_copy))
        ratios.append(seconds_of(lambda: snapshot(ours)) / raws[-1])
        unpinned.append(seconds_of(lambda: snapshot(pageable)) / raws[-1])
    slowdown = slowdown_of_products(lambda: snapshot(ours))
    for buffer in buffers:
        buffer.unlink()  # unpins it: CUDA remembers addresses, and somebody else will get them
    memory.forget("w")
    return {
        "snapshot_to_raw_copy": median(ratios),
        "snapshot_without_pinning_to_raw_copy": median(unpinned),
        "raw_copy_gb_per_second": median([STATE_BYTES / raw_s / 1e9 for raw_s in raws]),
        "slowdown_of_products_beside_a_snapshot": slowdown,
    }


def slowdown_of_products(snapshot: Callable[[], None], rounds: int = 5) -> float:
    """Of products of matrices on the training's stream, while a thread takes snapshots."""
    from threading import Thread

    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def products(count: int) -> float:
        return seconds_of(lambda: [torch.mm(matrix, matrix) for _ in range(count)])

    products(20)
    slowdowns = []
    for _ in range(rounds):
        alone = products(60)  # some 100 ms, as long as the copy
        thread = Thread(target=snapshot)
        thread.start()
        beside = products(60)
        thread.join()
        slowdowns.append(beside / alone - 1)
    return median(slowdowns)


class Training:
    """Runs of the trainer on one model: its steps' records."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self._folder = folder
        self._model = make_model(folder / "model", shape)
        torch.cuda.empty_cache()
        self._pairs = make_pairs(folder / "pairs.jsonl", rows=PAIRS_A_STEP * STEPS, tokens=MAX_LENGTH)
        self._numbers = itertools.count()

    def steps(self, **sections: dict[str, Any]) -> list[dict[str, Any]]:
        """The records of a run's warm steps, in order."""
        name = f"run-{next(self._numbers)}"
        training = {
            "per_device_batch": PAIRS_A_STEP,
            "max_steps": STEPS,
            "gradient_checkpointing": True,
            **sections.pop("training", {}),
        }
        self.recipe = recipe = write_recipe(
            self._folder / f"{name}.yaml",
            self._model,
            self._pairs,
            dpo={"max_length": MAX_LENGTH, "max_prompt_length": MAX_LENGTH // 2},
            training=training,
            **{"saves": {"every_steps": 1000}, **sections},
        )
        bucket = self._folder / "bucket"
        bucket.mkdir(exist_ok=True)
        command = ["notus-launch", "--cloud", "local", "--recipe", str(recipe), "--bucket", str(bucket)]
        command[:1] = [sys.executable, "-m", "launcher.cli"]
        options = ["--name", name, "--processes", "1", "-o", "json"]
        home = {"NOTUS_HOME": str(self._folder / "home")}
        done = subprocess.run([*command, *options], env={**os.environ, **home}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        records = sorted(read_metrics(open_run(str(bucket), name)), key=lambda record: record.step)
        return [record.values for record in records][WARM_STEPS:]


def attentions() -> list[str]:
    """The fastest first."""
    return [*(["flash_attention_2"] if is_flash_attn_2_available() else []), "sdpa", "eager"]


def bench_determinism(folder: Path, layers: int = 8) -> dict[str, Any]:
    """Seconds of a step for each attention; with `training.deterministic` / without; memory against the sum."""
    training = Training(folder, layers_of_7b(layers))
    found: dict[str, Any] = {"shape": f"Mistral 7B with {layers} layers, ZeRO-3, full, 8 pairs of 1,024 tokens"}
    for attention in attentions():
        steps = training.steps(zero={}, model={"attention": attention})
        found |= {
            f"{attention}_step_s": median([step["seconds"] for step in steps]),
            f"{attention}_mfu": median([step.get("mfu", 0.0) for step in steps]),
            f"{attention}_peak_gib": max(step["memory_gib"] for step in steps),
        }
        sys.stderr.write(f"{json.dumps(found)}\n")
    found["sum_gib"] = round(sum_gib(training.recipe, layers), 2)
    fastest = attentions()[0]
    free = training.steps(zero={}, model={"attention": fastest}, training={"deterministic": False})
    step_s = median([step["seconds"] for step in free])
    return {**found, f"{fastest}_deterministic_to_not": round(found[f"{fastest}_step_s"] / step_s, 3)}


def bench_repeats(folder: Path) -> dict[str, Any]:
    """Do two trainings at once, which disturb each other's kernels, give the same losses to the last bit?"""
    training = Training(folder, layers_of_7b(2))

    def losses(attention: str, deterministic: bool) -> list[Any]:
        steps = training.steps(zero={}, model={"attention": attention}, training={"deterministic": deterministic})
        return [step["losses_hex"] for step in steps]

    wanted = [(attention, deterministic) for attention in attentions()[:2] for deterministic in (True, False)]
    with ThreadPoolExecutor(4) as pool:  # some 15 GiB each
        twice = [[pool.submit(losses, *what) for _ in range(2)] for what in wanted]
        return {
            f"{attention}_{'deterministic' if deterministic else 'free'}_twice_the_same": one.result() == two.result()
            for (attention, deterministic), (one, two) in zip(wanted, twice, strict=True)
        }


def bench_saves(folder: Path) -> dict[str, float]:
    """A step beside a save / a step without one, and what the training sees of the save."""
    training = Training(folder, layers_of_7b(4))
    without = median([step["seconds"] for step in training.steps(zero={})])
    saved = training.steps(zero={}, saves={"every_steps": 2})
    return {
        "step_s": without,
        "step_beside_saves_to_without": round(median([step["seconds"] for step in saved]) / without, 3),
        "stalled_to_step": round(median([step["stalled_s"] for step in saved]) / without, 3),
        "peak_gib_4_layers": max(step["memory_gib"] for step in saved),
        "sum_gib_4_layers": round(sum_gib(training.recipe, 4), 2),
    }


def sum_gib(recipe: Path, layers: int) -> float:
    """What the planner thinks that a GPU needs, without its reserve."""
    return need_of(load_recipe(str(recipe)), layers_of_7b(layers), 1, IN_ORDER[0]).gpu / 2**30


def main() -> None:
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for bench in (
            bench_snapshot,
            lambda: bench_saves(_made(Path(name) / "saves")),
            lambda: bench_determinism(_made(Path(name) / "determinism")),
            lambda: bench_repeats(_made(Path(name) / "repeats")),
        ):
            found |= bench()
            torch.cuda.empty_cache()
            sys.stderr.write(f"{json.dumps(found)}\n")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
