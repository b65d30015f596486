"""kill -9 at 50 random moments, of the trainer alone or with its uploader: the run always ends bit for bit the same."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkpoints.head import read_head
from checkpoints.restore import verify
from checkpoints.run import open_run
from checkpoints.shm import RunMemory
from tests.integration.loop_script import STEPS
from trainer.processes import adopt_orphans, any_descendant

KILLS = 50


def start(bucket: Path, run: str) -> subprocess.Popen[str]:
    head = read_head(open_run(str(bucket), run))
    script = Path(__file__).with_name("loop_script.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(bucket), run, head.writer.id if head else ""],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


def digests(text: str) -> dict[int, str]:
    """Step -> digest; a last line that was cut short doesn't count."""
    lines = [line.split() for line in text.splitlines() if len(line.split()) == 2 and len(line.split()[1]) == 16]
    return {int(step): digest for step, digest in lines}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    bucket = tmp_path_factory.mktemp("truth")
    process = start(bucket, "whole")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert len(digests(out)) == STEPS
    return digests(out)


def test_fifty_kills(tmp_path: Path, truth: dict[int, str]) -> None:
    adopt_orphans()  # uploaders whose trainer was killed come to us, and are looked at below
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed of the kills: {seed}")  # noqa: T201
    generator = random.Random(seed)
    kills = runs = resumed_later = 0
    while kills < KILLS:
        runs += 1
        run, finished = f"killed-{runs}", False
        while not finished:
            process = start(tmp_path, run)
            first = process.stdout.readline() if process.stdout else ""
            resumed_later += bool(first) and int(first.split()[0]) > 1
            if kills < KILLS:
                time.sleep(generator.expovariate(1 / 0.15))
                with_uploader = generator.random() < 0.5
                victims = [process.pid]
                with contextlib.suppress(psutil.NoSuchProcess):
                    children = psutil.Process(process.pid).children(recursive=True)
                    victims += [child.pid for child in children] if with_uploader else []
                for victim in victims:
                    with contextlib.suppress(ProcessLookupError):
                        psutil.Process(victim).send_signal(signal.SIGKILL) if psutil.pid_exists(victim) else None
                kills += 1
            out, _ = process.communicate(timeout=120)
            for step, digest in digests(first + out).items():
                assert truth[step] == digest, f"step {step} of {run} differs (seed {seed})"
            finished = process.returncode == 0
        store = open_run(str(tmp_path), run)
        head = read_head(store)
        assert head is not None
        assert head.commits[0].step == STEPS
        for commit in head.commits:
            verify(store, commit)
        folders = RunMemory(store.url).snapshot("", 0).parent
        assert list(folders.parent.glob(f"{folders.name}*")) == [], "shared memory of dead attempts is left behind"
    assert resumed_later > KILLS / 4, "the kills must hit runs that had saved something"
    deadline = time.monotonic() + 60
    while any_descendant("checkpoints.uploader"):
        assert time.monotonic() < deadline, "an uploader lives on as an orphan"
        time.sleep(0.1)


def test_the_example_of_the_docs_runs_and_resumes(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs/examples/plain_loop.py"
    command = [sys.executable, str(example), str(tmp_path), "example"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(first) == 61
    assert again == first[-1:], "a finished run has nothing to do, and the same weights"
