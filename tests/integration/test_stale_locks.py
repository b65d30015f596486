"""An attempt that is killed in a newcomer's first minute leaves nothing that a later one waits for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Launcher, recipe, wait_for


@pytest.fixture
def first_start(launcher: Launcher, tmp_path: Path) -> Launcher:
    """On a machine that has never compiled anything."""
    launcher.environment |= {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "HF_TOKEN": ""}
    return launcher


@pytest.mark.slow
def test_killed_while_it_compiles_the_next_run_goes_on(first_start: Launcher, tmp_path: Path) -> None:
    process = first_start.start(*first_start.local("tiny-dpo", "--name", "first"))
    wait_for(lambda: first_start.progress("first").phase == "compiling", "the compiler")
    wait_for(lambda: bool(first_start.processes("cc1plus")), "the compiler's start")
    process.kill()
    wait_for(lambda: _all_killed(first_start), "the end of all")
    process.communicate(timeout=60)

    short = recipe(tmp_path, "tiny-dpo", ("  epochs: 2", "  epochs: 1\n  max_steps: 2"))
    receipt = first_start.run(*first_start.local(short, "--name", "second")).receipt()
    assert receipt["state"] == "finished"
    assert [path.name for path in (tmp_path / "extensions").rglob("*.so")], "kept for the next start"


def _all_killed(launcher: Launcher) -> bool:
    """Some begin while others are killed."""
    living = launcher.processes()
    for one in living:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return not living


@pytest.mark.slow
def test_a_lock_that_an_older_version_left_is_nobodys(first_start: Launcher, tmp_path: Path) -> None:
    lock = tmp_path / "extensions/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    short = recipe(tmp_path, "tiny-dpo", ("  epochs: 2", "  epochs: 1\n  max_steps: 2"))
    assert first_start.run(*first_start.local(short, "--name", "run")).receipt()["state"] == "finished"


LOCKS = {
    "the Hub's": "from huggingface_hub.utils import WeakFileLock; lock = WeakFileLock(PATH)",
    "datasets'": "from datasets.utils._filelock import FileLock; lock = FileLock(PATH)",
    "inductor's": "from torch.utils._filelock import FileLock; lock = FileLock(PATH)",
}


@pytest.mark.parametrize("whose", LOCKS)
def test_the_kernel_frees_the_locks_of_the_libraries(whose: str, tmp_path: Path) -> None:
    """Those that they take below a user's home while a run starts."""
    take = LOCKS[whose].replace("PATH", repr(str(tmp_path / "lock")))
    dies = f"{take}\nlock.__enter__()\nimport os\nos.kill(os.getpid(), 9)"
    takes = f"{take}\nlock.__enter__()\nprint('taken')"
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(dies)], check=False).returncode == -9
    done = subprocess.run([sys.executable, "-c", takes], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "taken\n"
