"""DeepSpeed's own save and load, as its users call them, through our engine: the same as through the stock one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_manifest
from checkpoints.restore.consolidate import Zero3State
from checkpoints.restore.shard_restore import restore_shard
from checkpoints.run_log.run_record import open_run

SLOTS = {"adamw": ("", "exp_avg", "exp_avg_sq"), "rmsprop": ("", "square_avg")}


def deepspeed(ranks: int, *arguments: str) -> str:
    """Run the script under torchrun; returns what it printed."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [*command, "-m", "tests.integration.deepspeed_script", *arguments],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("rmsprop", marks=pytest.mark.slow)])
def test_save_load_and_other_world_sizes(optimizer: str, tmp_path: Path) -> None:
    bucket = str(tmp_path)
    deepspeed(2, "save", bucket, optimizer)
    if optimizer == "adamw":
        lines = [line for line in deepspeed(2, "load", bucket, optimizer).splitlines() if ": found" in line]
        # Under ZeRO-3 DeepSpeed 0.19.8 loads nothing for `load_module_only` alone: so it does with the stock engine.
        assert lines == [
            "latest: found True, weights loaded, tag second, steps 5",
            "first: found True, weights loaded, tag first, steps 3",
            "second: found True, weights loaded, tag second, steps 5",
            "module only: found True, weights as before, tag second, steps 0",
            "no optimizer: found True, weights loaded, tag second, steps 5",
            "module only, no optimizer: found True, weights loaded, tag second, steps 0",
            "no schedule: found True, weights loaded, tag second, steps 5",
            "no such tag: found False, weights as before, tag None, steps 0",
        ]
    store = open_run(bucket, "run")
    for ranks in (1, 3):
        deepspeed(ranks, "move", bucket, optimizer)
        head = read_head(store)
        assert head is not None
        moved, saved = head.commits[:2]
        assert (moved.step, saved.step) == (6, 5)
        states = [
            Zero3State([restore_shard(store, commit, rank) for rank in range(load_manifest(store, commit).world_size)])
            for commit in (moved, saved)
        ]
        for slot in SLOTS[optimizer]:
            mine, theirs = (dict(state.tensors(slot)) for state in states)
            assert mine.keys() == theirs.keys()
            for name, tensor in mine.items():
                assert tensor.tobytes() == theirs[name].tobytes(), (slot, name)
        # so that the next world size starts from what two ranks saved
        (tmp_path / "run/HEAD").write_bytes(head.model_copy(update={"commits": head.commits[1:]}).to_json())
