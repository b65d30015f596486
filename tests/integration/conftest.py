"""Real processes, real ranks, real kills. Each start of the trainer takes some 10 s on two cores."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_manifest
from checkpoints.records.manifest import ShardIndex
from checkpoints.restore.shard_restore import restore_shard
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from trainer.runtime.attempt_dir import Progress, Scratch

START_S = 400.0
"""More than a start ever takes, the first one's compiling included."""


class Launched(NamedTuple):
    """A finished `notus-launch`."""

    code: int
    out: str
    err: str

    def receipt(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Launcher:
    """Runs the command line as a user would, with a home of its own."""

    def __init__(self, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home = home
        # The tests count on two ranks on the CPU, also on a machine with GPUs.
        self.environment = {**os.environ, "NOTUS_HOME": str(home), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}

    @property
    def bucket(self) -> str:
        folder = self.home / "bucket"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def run(self, *arguments: str, timeout_s: float = 500) -> Launched:
        done = subprocess.run(
            self._command(arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Launched(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command(arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def local(self, recipe: str, *arguments: str) -> tuple[str, ...]:
        return ("--cloud", "local", "--recipe", recipe, "-o", "json", *arguments)

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "launcher.cli", *arguments]

    def progress(self, run: str) -> Progress:
        """Where the newest attempt of a run is, from its scratch folder."""
        folders = sorted((self.home / "scratch" / run).glob("attempt-*"))
        return Scratch(folders[-1]).read_progress() if folders else Progress(phase="starting")

    def progress_step(self, run: str) -> int:
        """The newest step of a running attempt."""
        return self.progress(run).step

    @contextlib.contextmanager
    def frozen(self, run: str, *, step: int = 0) -> Iterator[None]:
        """The ranks stand still, once they train and have done `step`: a tiny model is done before anybody has asked it
        for anything."""
        wait_for(lambda: self.progress(run).phase == "training" and self.progress_step(run) >= step, f"step {step}")
        ranks = self.processes("trainer.training.worker")
        assert ranks, "they were faster"
        for process in ranks:
            process.suspend()
        yield
        for process in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):  # killed meanwhile
                process.resume()

    def announce_preemption(self, run: str, seconds: float) -> None:
        """Give a running attempt a notice."""
        attempt = next((self.home / "scratch" / run).glob("attempt-*"))
        (attempt / "notice").write_text(json.dumps({"seconds": seconds}))

    def processes(self, running: str = "") -> list[psutil.Process]:
        """All living processes of this launcher's attempts, or those with this in their command line. Ask nothing of
        them without expecting that they are gone by now."""
        found = []
        for process in psutil.process_iter():
            try:
                command = json.dumps(process.cmdline())
                ours = str(self.home) in command + process.environ().get("NOTUS_SCRATCH", "")
                if ours and running in command and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """A launcher with an empty home; whatever it started is gone at the end, or the test fails."""
    made = Launcher(tmp_path / "home")
    yield made
    left = made.processes()
    for process in left:
        process.send_signal(signal.SIGKILL)
    assert not left, f"processes left behind: {left}"


@pytest.fixture
def sky_environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_USER_ID": "deadbeef",
    }


def recipe(folder: Path, base: str, *changes: tuple[str, str]) -> str:
    """A variant of a recipe that comes with the package, in a new file of `folder` (created)."""
    text = (files("trainer") / f"recipes/{base}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{base}-{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(text)
    return str(path)


def undisturbed(launcher: Launcher) -> Store:
    """A run of tiny-dpo that nobody interrupts."""
    launcher.run(*launcher.local("tiny-dpo", "--name", "reference")).receipt()
    return open_run(launcher.bucket, "reference")


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)


def stop_after(launcher: Launcher, arguments: tuple[str, ...], run: str, step: int) -> None:
    """Run until `step` and stop as a user would."""
    process = launcher.start(*arguments)
    wait_for(lambda: launcher.progress_step(run) >= step, f"step {step}")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75, err


def assert_bit_exact(one: Store, other: Store) -> None:
    """Every rank's loss of every step, and every tensor of the final state: read back, not compared by hash."""
    import torch

    losses = [{(m.rank, m.step): m.values["losses_hex"] for m in read_metrics(run)} for run in (one, other)]
    assert losses[0]
    assert losses[0] == losses[1]
    heads = [read_head(run) for run in (one, other)]
    assert heads[0] is not None
    assert heads[1] is not None
    newest = [head.commits[0] for head in heads if head]
    assert newest[0].step == newest[1].step
    manifests = [load_manifest(run, commit) for run, commit in zip((one, other), newest, strict=True)]
    compared = 0
    for rank in range(manifests[0].world_size):
        mine, theirs = (restore_shard(run, commit, rank) for run, commit in zip((one, other), newest, strict=True))
        for a, b in zip(_tensors(mine.index, mine.data), _tensors(theirs.index, theirs.data), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1]), a[0]
            compared += 1
    assert compared > 10


def _tensors(index: ShardIndex, data: memoryview) -> list[tuple[str, Any]]:
    import torch

    return [
        (
            record.name,
            torch.frombuffer(bytearray(data[record.offset : record.offset + record.size_bytes]), dtype=torch.uint8),
        )
        for record in index.tensors
        if record.size_bytes
    ]
