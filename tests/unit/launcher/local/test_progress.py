"""What a running attempt looks like where stderr is no terminal."""

from __future__ import annotations

import pytest

from launcher.local import progress
from launcher.local.progress import LINE_EVERY_S, Lines
from trainer.runtime.attempt_dir import Progress


def test_a_long_phase_says_how_far_it_is_and_for_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = Lines("run")
    lines.attempt_started(1)
    for second in range(25):
        now = 1000.0 + second
        lines.progress(Progress(phase="preparing data", done=100 * second, of=3000))
    lines.progress(Progress(phase="training", step=0, total_steps=24))
    now += LINE_EVERY_S + 1
    lines.progress(Progress(phase="training", step=3, total_steps=24))
    assert capsys.readouterr().err.splitlines() == [
        "  run, attempt 1: started",
        "  run, attempt 1: preparing data",
        "  run, attempt 1: preparing data (1,100 of 3,000 rows), for 11 s",
        "  run, attempt 1: preparing data (2,200 of 3,000 rows), for 22 s",
        "  run, attempt 1: training, step 0/24",
        "  run, attempt 1: training, step 3/24",
    ]
