"""A run that is killed on a GPU ends bit for bit as one that isn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from tests.gpu.workload import write_recipe
from tests.integration.conftest import Launcher, assert_bit_exact

ZERO: dict[str, Any] = {"offload_optimizer": "none", "offload_parameters": "none"}
OFFLOADED: dict[str, Any] = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
LORA: dict[str, Any] = {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
WAYS: dict[str, dict[str, Any]] = {
    "zero3": {"zero": ZERO, "training": {"optimizer": "adamw", "gradient_checkpointing": True}},
    "zero3-offloaded": {"zero": OFFLOADED},
    "lora": {"lora": LORA, "training": {"reentrant_checkpointing": False, "gradient_checkpointing": True}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_killed_and_resumed(
    launcher: Launcher, tmp_path: Path, model: Path, pairs: Path, way: str, attention: str, seed: int
) -> None:
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    recipe = write_recipe(tmp_path / "gpu.yaml", model, pairs, **{**WAYS[way], "model": {"attention": attention}})
    arguments = ("--name", "killed", "--processes", "1", "--preempt", "1", "--seed", str(seed))
    receipt = launcher.run(*launcher.local(str(recipe), *arguments)).receipt()
    assert receipt["preemptions"] == 1
    assert receipt["steps"] == 12
    assert receipt["bit_exact"] is True
    killed = open_run(launcher.bucket, "killed")
    assert_bit_exact(killed, open_run(launcher.bucket, "killed-uninterrupted"))
    figures = [metrics.values for metrics in read_metrics(killed)]
    assert all(0 < step["memory_gib"] < 20 and 0 <= step.get("mfu", 0) < 1 for step in figures), figures
    log = launcher.run("logs", "killed", "--attempt", "2").out
    assert f"attention: {attention}" in log
    assert "can't be pinned" not in log


def test_torchs_own_attention_promises_nothing(launcher: Launcher, tmp_path: Path, model: Path, pairs: Path) -> None:
    """It ended on the same bits whenever we looked, but its kernel may do otherwise, and the run says so."""
    recipe = write_recipe(tmp_path / "gpu.yaml", model, pairs, zero=ZERO, model={"attention": "sdpa"})
    arguments = ("--name", "sdpa", "--processes", "1", "--preempt", "1", "--no-compare", "--seed", "7")
    assert launcher.run(*launcher.local(str(recipe), *arguments)).receipt()["steps"] == 12
    resumed = [event for event in read_events(open_run(launcher.bucket, "sdpa")) if event.kind == "resumed"]
    assert all("sdpa" in event.data["not_exact"][0] for event in resumed)
    assert resumed
