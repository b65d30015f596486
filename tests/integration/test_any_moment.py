"""kill -9 of a whole run, or of a part of it, at random moments from its start to its export: it always ends the same.

Half of the kills come in the first start of a fresh home, where a newcomer's Ctrl-C comes too: while it imports,
compiles, tokenises or loads, when nothing is saved. `NOTUS_KILLS=50` plays the 50 of the docs (about 2 h on 2 cores).
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from tests.integration.conftest import START_S, Launcher, assert_bit_exact, undisturbed, wait_for
from trainer.runtime.attempt_dir import Phase
from trainer.runtime.startup_phases import in_words

KILLS = int(os.environ.get("NOTUS_KILLS", "4"))
FIRST_START: dict[Phase, float] = {
    "compiling": 60.0, "loading the model": 2.0, "importing": 8.0, "preparing data": 2.0, "starting": 1.0,
}  # fmt: skip
LATER: dict[Phase, float] = {"training": 6.0, "exporting": 1.0, "restoring": 0.5, "saving": 0.3, "evaluating": 0.3}
"""Seconds that the phases last, about: the kill comes at a random moment of them."""
VICTIMS = ("the launcher", "the supervisor", "a rank", "all")


class Moment(NamedTuple):
    """Who is killed when."""

    phase: Phase
    delay_s: float
    victim: str
    first_start: bool


def draw(number: int, generator: random.Random) -> Moment:
    first = number % 2 == 0
    phases = FIRST_START if first else LATER
    phase = list(phases)[number // 2 % len(phases)]
    return Moment(phase, generator.uniform(0, phases[phase]), generator.choice(VICTIMS), first)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return undisturbed(Launcher(tmp_path_factory.mktemp("reference")))


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[list[Launcher]]:
    made: list[Launcher] = []
    yield made
    for one in made:
        for process in one.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("number", range(KILLS))
def test_a_run_that_is_killed_at_any_moment_ends_bit_for_bit_the_same(
    number: int, homes: list[Launcher], tmp_path: Path, reference: Store, seed: int
) -> None:
    moment = draw(number, random.Random(seed * 1000 + number))
    fresh = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "operators")} if moment.first_start else {}
    launcher = Launcher(tmp_path / "home", fresh)
    homes.append(launcher)
    again = launcher.local("tiny-dpo", "--name", "run")
    process = start(launcher, again, tmp_path / "log.txt")
    seen = kill(process, launcher, moment)
    print(f"{moment}: killed while it was {seen}")  # noqa: T201  # which pytest shows where it fails
    if moment.first_start:
        assert seen != "over"
    if process.wait(2 * START_S) != 0:
        wait_for(lambda: not launcher.processes(), "the end of the others", 60)
        assert launcher.run(*again, timeout_s=2 * START_S).receipt()["state"] == "finished"
    assert_bit_exact(open_run(launcher.bucket, "run"), reference)
    assert not launcher.processes(), "nothing is left"
    assert not list((launcher.home / "scratch/run").glob("attempt-*/work")), "nor its files"


def start(launcher: Launcher, arguments: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "launcher.cli", *arguments]
        return subprocess.Popen(command, env=launcher.environment, stdout=file, stderr=file)


def kill(process: subprocess.Popen[bytes], launcher: Launcher, moment: Moment) -> str:
    """What the run was doing then; "over" where it had ended."""

    def reached() -> bool:
        return process.poll() is not None or launcher.progress("run").phase == moment.phase

    wait_for(reached, moment.phase)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment.delay_s)
    if process.poll() is not None:
        return "over"
    seen = in_words(launcher.progress("run"))
    for victim in victims(process, launcher, moment.victim):
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    return seen


def victims(process: subprocess.Popen[bytes], launcher: Launcher, which: str) -> list[psutil.Process]:
    if which == "the supervisor":
        return launcher.processes("trainer.main")
    if which == "a rank":
        return launcher.processes("trainer.training.worker")[:1]
    everybody = launcher.processes() if which == "all" else []
    return [psutil.Process(process.pid), *everybody]
