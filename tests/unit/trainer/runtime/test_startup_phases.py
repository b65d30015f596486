"""What an attempt says of its phases before the training, and what moves in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from trainer.runtime.attempt_dir import BEFORE_TRAINING, Phase, Progress, Scratch
from trainer.runtime.startup_phases import (
    BEFORE,
    MIB,
    Count,
    PhaseReport,
    Tally,
    activity,
    compiled_in,
    in_words,
    phase_in_words,
    quiet_limit_s,
    ranks_here,
)


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


@pytest.fixture(autouse=True)
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The looks are the tests'."""
    monkeypatch.setattr("trainer.runtime.startup_phases.threading.Thread.start", lambda thread: None)


def test_each_phase_before_the_training_has_words_and_a_limit_and_no_other_has() -> None:
    assert BEFORE.keys() == BEFORE_TRAINING
    assert {phase for phase in get_args(Phase) if quiet_limit_s(phase) is not None} == BEFORE_TRAINING
    assert BEFORE["compiling"].words.endswith("once for this machine")


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress(phase="preparing data"), "preparing data"),
        (Progress(phase="preparing data", done=43_000, of=61_966), "preparing data (43,000 of 61,966 rows)"),
        (Progress(phase="importing", done=3120), "importing the libraries (3,120 modules)"),
        (Progress(phase="restoring", done=7), "restoring the checkpoint"),
        (Progress(phase="training", done=7), "training"),
    ],
)
def test_words(progress: Progress, words: str) -> None:
    assert in_words(progress) == words


def test_a_phase_of_another_version_is_shown_as_it_is() -> None:
    assert phase_in_words("thinking", 3, 4) == "thinking"


def test_what_moves_is_written_and_what_stands_still_is_not(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.runtime.startup_phases.activity", lambda: 40)
    read, rows = 0, 0
    report = PhaseReport(scratch, lambda: read)
    report.begin(Progress(phase="preparing data"), lambda: Count(rows, 300))
    assert scratch.read_progress() == Progress(phase="preparing data")
    report.look()
    assert scratch.read_progress() == Progress(phase="preparing data", of=300, moved=40)
    rows, read = 200, 3 << MIB
    report.look()
    assert scratch.read_progress() == Progress(phase="preparing data", done=200, of=300, moved=43)
    (scratch.folder / "progress.json").unlink()
    report.look()
    assert not (scratch.folder / "progress.json").exists(), "nothing new"


def test_a_look_never_writes_over_a_later_phase(scratch: Scratch) -> None:
    report = PhaseReport(scratch)
    report.begin(Progress(phase="restoring"))
    trained = Progress(phase="training", step=4, total_steps=9, loss=0.5)
    report.begin(trained)
    report.look()
    assert scratch.read_progress() == trained


def test_a_look_itself_moves_nothing() -> None:
    """Else nothing would ever stand still: 8 ranks are 4 kB of /proc a second, a MiB within each limit."""
    one = [Path("/proc/self")]
    before = activity(one)
    for _ in range(8000):  # reads of 3 MiB
        activity(one)
    assert activity(one) - before <= 1


def test_activity_is_what_the_kernel_and_python_tell(tmp_path: Path) -> None:
    for rank, faults in (("1", 4), ("2", 0)):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "io").write_text(f"rchar: {5 << MIB}\nwchar: {2 << MIB}\nread_bytes: {1 << MIB}\n")
        (tmp_path / rank / "stat").write_text(f"7 (python (x)) S 1 7 7 0 -1 4194304 100 0 {faults} 0 5\n")
    both = [tmp_path / "1", tmp_path / "2", tmp_path / "gone"]
    assert activity(both) - activity([]) in (2 * 8 + 3, 2 * 8 + 4), "the MiB of this thread are rounded"


def test_the_ranks_of_a_machine_are_torchruns_children(tmp_path: Path) -> None:
    assert ranks_here(tmp_path) == [tmp_path / "self"], "a kernel that doesn't tell"
    children = tmp_path / f"{os.getppid()}/task/{os.getppid()}/children"
    children.parent.mkdir(parents=True)
    children.write_text("71 72 ")
    assert ranks_here(tmp_path) == [tmp_path / "71", tmp_path / "72"]


def test_rows_of_several_processes_are_counted(tmp_path: Path) -> None:
    one, other = Tally(tmp_path / "rows"), Tally(tmp_path / "rows")
    assert one.read() == 0
    for _ in range(250):
        one.add()
        other.add()
    assert one.read() == other.read() == 400
    Tally(tmp_path / "nowhere/rows").add()


def test_what_a_compiler_has_written_is_counted(tmp_path: Path) -> None:
    assert compiled_in(tmp_path / "not there") == Count(0)
    (tmp_path / "shm").mkdir()
    for name in ("shm/a.o", "shm/b.o", "shm/build.ninja", "shm.so"):
        (tmp_path / name).touch()
    assert compiled_in(tmp_path) == Count(3)
