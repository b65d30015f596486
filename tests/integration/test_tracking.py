"""What W&B and TensorBoard show of a run, and that the run needs neither."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from tests.integration.conftest import Launcher, recipe

FAKES = Path(__file__).parent / "fakes"


@pytest.fixture
def tracked(launcher: Launcher, tmp_path: Path) -> str:
    """A recipe that reports to a fake W&B and to TensorBoard. Its kills redo steps: it saves where it evaluates only."""
    launcher.environment |= {
        "PYTHONPATH": str(FAKES),
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # the check before a launch asks the real one
        "FAKE_WANDB_CALLS": str(tmp_path / "calls.jsonl"),
    }
    return recipe(
        tmp_path,
        "tiny-dpo",
        ("tracking: [tensorboard]", "tracking: [wandb, tensorboard]"),
        ("log_every_steps: 4", "log_every_steps: 1"),
        ("every_steps: 5", "every_steps: 1000"),
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: step and value, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(one.step, one.value) for one in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


@pytest.mark.slow
def test_a_killed_run_is_one_curve(launcher: Launcher, tracked: str, tmp_path: Path, seed: int) -> None:
    receipt = launcher.run(
        *launcher.local(tracked, "--name", "curve", "--preempt", "2", "--seed", str(seed), "--no-compare")
    ).receipt()
    assert receipt["preemptions"] == 2
    store = open_run(launcher.bucket, "curve")
    lines = [line for line in read_metrics(store) if line.rank == 0]
    evaluated = {e.data["step"]: e.data["metrics"]["eval_loss"] for e in read_events(store) if e.kind == "evaluated"}
    assert list(evaluated) == [12, 24]

    curves = scalars(Path(launcher.bucket) / "curve/tensorboard")
    for tag, points in curves.items():
        assert [step for step, _ in points] == ([12, 24] if tag.startswith("eval/") else list(range(1, 25))), tag
    kept = {line.step: line.values for line in lines}
    assert [value for _, value in curves["train/rewards/margins"]] == pytest.approx(
        [kept[step]["rewards/margins"] for step in range(1, 25)], rel=1e-6
    )
    assert [value for _, value in curves["eval/loss"]] == pytest.approx(list(evaluated.values()), rel=1e-6)
    machines = [value for _, value in curves["train/attempt"]]
    assert machines == sorted(machines)
    assert len(set(machines)) > 1, "the boundary is visible"

    calls: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert {(call["id"], call["resume"]) for call in calls if call["what"] == "init"} == {("curve", "allow")}
    assert calls[-1]["what"] == "finish"
    logged = [call for call in calls if call["what"] == "log"]
    numbers = [call["step"] for call in logged]
    assert numbers == sorted(set(numbers)), "W&B drops a row that isn't newer than all it has"
    training = [call["row"] for call in logged if "train/loss" in call["row"]]
    assert [row["train/global_step"] for row in training] == list(range(1, 25))
    assert len({row["train/attempt"] for row in training}) > 1
    evaluations = [call for call in logged if "eval/loss" in call["row"]]
    assert [call["row"]["train/global_step"] for call in evaluations] == [12, 24]
    for call in evaluations:
        assert call["row"]["train/global_step"] in call["evaluations"], "the diary has it before W&B"


@pytest.mark.slow
def test_a_run_goes_on_without_wandb(launcher: Launcher, tracked: str, tmp_path: Path) -> None:
    launcher.environment["FAKE_WANDB_AWAY"] = "1"
    done = launcher.run(*launcher.local(tracked, "--name", "alone"))
    assert done.receipt()["steps"] == 24
    log = launcher.run("logs", "alone").out
    assert "continuing without wandb: CommError: Run initialization has timed out" in log
    assert len(scalars(Path(launcher.bucket) / "alone/tensorboard")["train/loss"]) == 24


def test_the_real_client_of_a_wandb_that_is_away_stops_nobody(tmp_path: Path) -> None:
    """A closed port: `wandb.init` itself would still be waiting after nine minutes."""
    script = """
        import logging, time
        logging.basicConfig(level=logging.WARNING)
        from trainer.metrics.trackers import Curves, WandbCurve
        from trainer.metrics.past_rows import Row
        begun = time.monotonic()
        curves = Curves({"wandb": lambda: WandbCurve("run", {})}, open_s=3.0)
        curves.show([Row(1, False, {"loss": 0.7})])
        curves.close()
        print(f"done in {time.monotonic() - begun:.0f} s", flush=True)
        import os; os._exit(0)
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "WANDB_API_KEY": "a" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_DIR": str(tmp_path),
        "WANDB_RUN_ID": "run",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the client's own service, which an attempt's supervisor ends
    assert "done in" in out, err
    assert "wandb does not respond: training starts without it" in err
    assert "wandb never responded" in err
