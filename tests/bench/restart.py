"""From the start of an attempt to the end of its first step: resumed / with nothing to restore, same run, in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 4


def receipt(home: Path, name: str, *arguments: str) -> dict[str, list[dict[str, float]]]:
    """Launch tiny-dpo as a user would."""
    command = [sys.executable, "-m", "launcher.cli", "--cloud", "local", "--recipe", "tiny-dpo", "--name", name]
    done = subprocess.run(
        [*command, "-o", "json", *arguments],
        env={**os.environ, "NOTUS_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout)
    return found


def bench_restart() -> dict[str, float]:
    """The median of the ratios, and the two medians in seconds."""
    fresh, resumed = [], []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        receipt(home, "warm-up")  # the first start compiles
        for number in range(ROUNDS):
            # Killed late, so that the second attempt has something to restore.
            attempts = receipt(home, f"run-{number}", "--preempt", "1", "--no-compare", "--seed", "3")["attempts"]
            assert attempts[1]["from_step"] > 0, "nothing was restored"
            fresh.append(attempts[0]["startup_s"])
            resumed.append(attempts[1]["startup_s"])
    ratios = [after / before for before, after in zip(fresh, resumed, strict=True)]
    return {
        "restart_to_fresh_start": round(statistics.median(ratios), 3),
        "fresh_start_s": round(statistics.median(fresh), 2),
        "restart_s": round(statistics.median(resumed), 2),
    }
