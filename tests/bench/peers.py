"""What a save costs the training: ours, stock DeepSpeed's and the HF Trainer's, of the same model, in one process.

Prints JSON: seconds that the training stands still for a save / a warm memcpy of the same state. Run by tests.bench.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29519",
}

import deepspeed
import deepspeed.runtime.engine as runtime
import numpy as np
import torch
from torch import nn

from tests.bench.sink import saver_on
from trainer.checkpointing.deepspeed_engine import install

STOCK = runtime.create_checkpoint_engine
LAYERS, WIDTH = 32, 1024
ROUNDS = 5


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def engine() -> Any:
    made = model()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
    }
    ready, *_ = deepspeed.initialize(model=made, optimizer=torch.optim.RMSprop(made.parameters()), config=config)
    step(ready)
    return ready


def step(ready: Any) -> None:
    ready.backward(ready(torch.randn(1, WIDTH, dtype=torch.bfloat16)).square().mean())
    ready.step()


def memcpy(size_bytes: int) -> float:
    """Seconds of a warm copy."""
    source, target = (np.ones(size_bytes // 4, dtype=np.float32) for _ in range(2))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def timed(act: Any) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def ours(folder: Path, ready: Any, bucket_engine: Any, size_bytes: int) -> float:
    """Capture, start of the copy, and what the next optimizer step waits for; the step is longer than the copy."""
    stalls = []
    with saver_on(str(folder), size_bytes) as saver:
        ready.optimizer.optimizer.register_step_pre_hook(lambda *args: saver.wait_copied())
        for number in range(1, ROUNDS + 1):
            captured = timed(lambda: ready.save_checkpoint(str(folder / "x"), save_latest=False))
            saver.take_stall_s()
            saver.save(number, bucket_engine.saved)
            step(ready)
            stalls.append(captured + saver.take_stall_s())
            saver.wait()
            assert saver.failure is None, saver.failure
    return statistics.median(stalls)


def hugging_face(folder: Path) -> float:
    """`Trainer._save_checkpoint` of the same weights and optimizer state, fp32."""
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

    class Wrapped(PreTrainedModel):  # type: ignore[misc]
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.layers = model()
            self.post_init()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layers(x).square().mean()}

    arguments = TrainingArguments(
        output_dir=str(folder / "hf"), use_cpu=True, max_steps=1, save_strategy="no", optim="rmsprop", report_to="none",
        disable_tqdm=True, per_device_train_batch_size=1, logging_strategy="no", remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model=Wrapped(), args=arguments, train_dataset=[{"x": torch.randn(WIDTH)}] * 2)
    trainer.train()
    return statistics.median(timed(lambda: trainer._save_checkpoint(trainer.model, None)) for _ in range(ROUNDS))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        bucket_engine = install()
        ready = engine()
        size_bytes = sum(flat.nbytes for flat in ready.optimizer.fp32_partitioned_groups_flat) * 2
        copy_s = memcpy(size_bytes)
        stall_s = ours(folder, ready, bucket_engine, size_bytes)
        runtime.create_checkpoint_engine = STOCK
        ready.checkpoint_engine = STOCK(ready._config, None, 3, False, None)
        stock_s = statistics.median(
            timed(lambda: ready.save_checkpoint(str(folder / "stock"), save_latest=False)) for _ in range(ROUNDS)
        )
        ratios = {
            "zero3_save_stalls_to_memcpy": stall_s / copy_s,
            "peer_deepspeed_save_stalls_to_memcpy": stock_s / copy_s,
            "peer_hf_trainer_save_stalls_to_memcpy": hugging_face(folder) / copy_s,
        }
    sys.stdout.write(json.dumps({name: round(value, 3) for name, value in ratios.items()}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
