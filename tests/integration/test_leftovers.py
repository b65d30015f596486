"""A trainer is killed and a process that it forked lives on: neither its uploader nor its memory stays for that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from checkpoints import Checkpointer
from checkpoints.snapshot.shared_memory import SHM, RunMemory
from tests.integration.conftest import wait_for

FORKER = """
import os, sys, time, warnings
import torch
from checkpoints import Checkpointer

warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: what a data loader does
checkpoints = Checkpointer(sys.argv[1], "one")
checkpoints.save(1, {"w": torch.zeros(1000)}, wait=True)
child = os.fork()
if child == 0:
    time.sleep(300)
    os._exit(0)
print(child, checkpoints._saver.uploader_pid, flush=True)
time.sleep(300)
"""


def lives(pid: int) -> bool:
    """A process that has ended stays as a zombie where these tests have adopted it and nobody reaps it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_forked_child_keeps_neither_uploader_nor_memory(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    bucket = str(tmp_path / "bucket")
    trainer = subprocess.Popen([sys.executable, "-c", FORKER, bucket], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    child, uploader = map(int, trainer.stdout.readline().split())
    memory = RunMemory(f"file://{bucket}/one")
    (left,) = SHM.glob(f"{memory._prefix}*")
    try:
        trainer.kill()
        trainer.wait()
        wait_for(lambda: not lives(uploader), "the uploader's end", 60)
        assert lives(child)
        assert left.exists()
        with Checkpointer(bucket, "another"):
            pass
        assert not left.exists(), "whoever comes next gives it back"
    finally:
        os.kill(child, signal.SIGKILL)
        trainer.stdout.close()
