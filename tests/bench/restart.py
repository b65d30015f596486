"""From the start of an attempt to the end of its first step: resumed / with nothing to restore, same run, in turn."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from tests.integration.conftest import recipe

ROUNDS = 4
LARGE_ROUNDS = 3


def receipt(home: Path, recipe_name: str, name: str, *arguments: str) -> dict[str, list[dict[str, float]]]:
    """Launch a recipe as a user would."""
    command = [sys.executable, "-m", "launcher.cli", "--cloud", "local", "--recipe", recipe_name, "--name", name]
    done = subprocess.run(
        [*command, "-o", "json", *arguments],
        env={**os.environ, "NOTUS_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout)
    shutil.rmtree(home / "bucket" / name)  # gigabytes of checkpoints
    return found


def large_recipe(folder: Path) -> str:
    """tiny-dpo with 63 million parameters: 507 MB of fp32 masters and RMSprop averages. Short rows, so steps of a second."""
    # Here, at the end of the bench: they import DeepSpeed, which changes the process (see `bench_peers`).
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.model.builtin_models import make_tiny_llama

    model = folder / "model"
    make_tiny_llama(model)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "head_dim": 256}
    config = LlamaConfig.from_pretrained(model, **sizes)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    return recipe(
        folder,
        "tiny-dpo",
        ("builtin:tiny-llama", str(model)),
        ("max_length: 256\n  max_prompt_length: 128", "max_length: 64\n  max_prompt_length: 32"),
        ("epochs: 2", "epochs: 1\n  max_steps: 8"),
        ("per_device_batch: 4", "per_device_batch: 1"),
        ("eval_every_epoch: true", "eval_every_epoch: false"),
        ("every_steps: 5", "every_steps: 1"),
    )


def restarts(home: Path, recipe_name: str, rounds: int) -> dict[str, float]:
    """Restart / fresh start, and both medians in seconds."""
    fresh, resumed = [], []
    receipt(home, recipe_name, "warm-up")  # the first start compiles
    for number in range(rounds):
        # Killed late, so that the second attempt has something to restore.
        arguments = ("--preempt", "1", "--no-compare", "--seed", "3")
        attempts = receipt(home, recipe_name, f"run-{number}", *arguments)["attempts"]
        assert attempts[1]["from_step"] > 0, "nothing was restored"
        fresh.append(attempts[0]["startup_s"])
        resumed.append(attempts[1]["startup_s"])
    ratios = [after / before for before, after in zip(fresh, resumed, strict=True)]
    return {
        "restart_to_fresh_start": round(statistics.median(ratios), 3),
        "fresh_start_s": round(statistics.median(fresh), 2),
        "restart_s": round(statistics.median(resumed), 2),
    }


def bench_restart() -> dict[str, float]:
    """Of a model whose state is 2 MB, and of one with 507 MB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = restarts(folder / "small", "tiny-dpo", ROUNDS)
        large = restarts(folder / "large", large_recipe(folder), LARGE_ROUNDS)
    return {**small, **{f"{name}_507_mb": value for name, value in large.items()}}
