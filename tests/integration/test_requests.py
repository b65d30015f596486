"""Wishes that reach a run through the bucket."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.run_log.stop_request import ask, read_request
from checkpoints.storage.base import Store
from checkpoints.util.interpreter import module
from tests.integration.conftest import Launcher, assert_bit_exact, wait_for


def notices(store: Store) -> list[str]:
    """Who has asked the run to end an attempt, so far."""
    return [event.data["source"] for event in read_events(store) if event.kind == "notice"]


@pytest.mark.slow
def test_stop_and_move_from_anywhere_and_nothing_is_lost(launcher: Launcher, reference: Store) -> None:
    """`notus-launch stop` ends the run after a save; launched again it is asked to move, and goes on by itself."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "asked"))
    store = open_run(launcher.bucket, "asked")
    with launcher.frozen("asked", step=2):
        stopping = launcher.start("stop", "asked", "--bucket", launcher.bucket)
        wait_for(lambda: notices(store) == ["stop"], "the wish to stop")
    _, err = stopping.communicate(timeout=60)
    assert stopping.returncode == 0, err
    assert "is complete" in err
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert read_request(store) is None, "fulfilled: the next launch is not stopped"

    assert launcher.run("stop", "asked", "--bucket", launcher.bucket).code == 0, "twice is harmless"
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "asked"))
    with launcher.frozen("asked"):
        ask(store, "move", 1, "meant for an attempt that is over")
        ask(store, "move", 2, "cheaper elsewhere")
        wait_for(lambda: notices(store) == ["stop", "move"], "the wish to move")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    events = read_events(store)
    outcomes = [event.data["outcome"] for event in events if event.kind == "attempt_ended"]
    assert outcomes == ["stopped", "preempted", "finished"]
    assert notices(store) == ["stop", "move"]
    for attempt in (1, 2):
        saved = [event.data["step"] for event in events if event.kind == "saved" and event.attempt <= attempt][-1]
        resumed = [event.data["step"] for event in events if event.kind == "resumed" and event.attempt == attempt + 1]
        assert resumed == [saved]
    assert_bit_exact(store, reference)


def test_a_run_whose_launcher_was_killed_waits_for_one(launcher: Launcher) -> None:
    """SIGKILL reaches no launcher's handler; its attempt is told by the kernel, saves and ends."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "orphan"))
    with launcher.frozen("orphan", step=2):
        process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not launcher.processes(), "the end of its attempt")

    def status() -> dict[str, Any]:
        found = launcher.run("status", "orphan", "-o", "json", "--bucket", launcher.bucket)
        assert found.code == 0, found.err
        return dict(json.loads(found.out)[0])

    assert status()["state"] == "waiting for a launcher"
    assert "its launcher on this machine is gone" in status()["note"]
    receipt = launcher.run("report", "orphan", "-o", "json", "--bucket", launcher.bucket).receipt()
    assert (receipt["preemptions"], receipt["attempts"][0]["ended"]) == (0, "stopped"), "nobody took a machine away"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_second_node_trains_nothing_and_neither_does_the_first(launcher: Launcher, tmp_path: Path, rank: str) -> None:
    """The second would find the run held by the first, and end the job after hours."""
    words = [*module("trainer.main"), "tiny-dpo", "--run", "nodes", "--bucket", str(tmp_path)]
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": rank}
    done = subprocess.run(
        words, env=launcher.environment | nodes, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "the task asks for 2 nodes, and a run has one" in done.stderr
    assert list(tmp_path.rglob("HEAD*")) == [], "nobody has claimed the run"
