"""What dead attempts leave on a machine is removed by whoever comes next; what lives, and what can be read, stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints.snapshot.shared_memory import RunMemory
from checkpoints.util import owner_locks
from trainer.runtime import stale_attempts

HOLDER = """
import sys
from pathlib import Path
from checkpoints.util import owner_locks
owner_locks.hold(Path(sys.argv[1]))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, with an attempt's folder."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(tmp_path / "scratch/run/attempt-1")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def test_a_killed_launchers_folder_goes_with_the_next_launch_of_any_run(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    root, folder = tmp_path / "scratch", tmp_path / "scratch/run/attempt-1"
    (folder / "work").mkdir()
    (folder / "work/model.safetensors").write_bytes(b"14 GB")
    stale_attempts.sweep(root, "*/attempt-*")
    assert (folder / "work/model.safetensors").exists(), "it lives"
    holder.kill()
    holder.wait()
    stale_attempts.sweep(root, "*/attempt-*")
    assert list(root.iterdir()) == []


def test_the_texts_of_an_attempt_that_failed_stay_for_a_week(tmp_path: Path) -> None:
    folder = tmp_path / "run/attempt-1"
    owner_locks.hold(folder)
    (folder / "work").mkdir()
    for name in ("log.txt", "result.json", "work/model.safetensors", "socket"):
        (folder / name).write_text("x")
    stale_attempts.release(folder, keep_texts=True)
    assert {path.name for path in folder.iterdir()} == {"log.txt", "result.json", "lock"}
    stale_attempts.sweep(tmp_path, "*/attempt-*")
    assert (folder / "log.txt").exists()
    old = time.time() - stale_attempts.TEXTS_KEPT_S - 1
    os.utime(folder, (old, old))
    stale_attempts.sweep(tmp_path, "*/attempt-*")
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_ended_well_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run/attempt-1"
    owner_locks.hold(folder)
    (folder / "log.txt").write_text("x")
    stale_attempts.release(folder)
    assert not folder.exists()


def test_a_folder_without_a_lock_is_being_made(tmp_path: Path) -> None:
    folder = tmp_path / "run/attempt-1"
    folder.mkdir(parents=True)
    stale_attempts.sweep(tmp_path, "*/attempt-*")
    assert folder.exists()
    old = time.time() - stale_attempts.UNLOCKED_KEPT_S - 1
    os.utime(folder, (old, old))
    stale_attempts.sweep(tmp_path, "*/attempt-*")
    assert not folder.exists()


def test_the_memory_of_a_dead_run_goes_with_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held 7 to 100 GB until the machine was started anew, or that very run came back to it."""
    monkeypatch.setattr("checkpoints.snapshot.shared_memory.SHM", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    dead, other = RunMemory("s3://b/dead"), RunMemory("s3://b/other")
    left = dead.snapshot("writer", 0)
    left.parent.mkdir()
    left.write_bytes(b"7 GB")
    (tmp_path / "shm/notus-somebody-elses").mkdir()
    other.remove_dead()
    assert [path.name for path in (tmp_path / "shm").iterdir()] == ["notus-somebody-elses"]
