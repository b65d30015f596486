"""Runs that were begun before a release of ours go on in it: buckets as earlier commits left them, in `old_runs/`.

Each was stopped at step 10 by commit a06b301, the last one with all modules in a row. What is stored may gain keys, and
loses none. Nothing is compared bit for bit here: the first ten steps were computed on another machine.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from checkpoints.commit.head import read_head
from checkpoints.restore.shard_restore import verify
from checkpoints.run_log.event_kinds import AttemptStarted, Finished, Resumed
from checkpoints.run_log.event_log import of_kind, read_events
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from tests.integration.conftest import Launcher


@pytest.mark.parametrize("recipe", ["tiny-dpo", "tiny-dpo-lora"])
def test_a_run_of_an_earlier_commit_goes_on(launcher: Launcher, recipe: str) -> None:
    with tarfile.open(Path(__file__).parent / f"old_runs/{recipe}.tar.gz") as packed:
        packed.extractall(launcher.bucket, filter="data")
    store = open_run(launcher.bucket, "old")
    before = read_head(store)
    assert before is not None
    assert verify(store, before.commits[0]).step == 10
    receipt = launcher.run(*launcher.local(recipe, "--name", "old")).receipt()
    assert receipt["state"] == "finished"
    events = read_events(store)
    assert [resumed.step for _, resumed in of_kind(events, Resumed)] == [10]
    assert len(of_kind(events, AttemptStarted)) == 2
    assert len(of_kind(events, Finished)) == 1
    steps = sorted({row.step for row in read_metrics(store)})
    assert steps == list(range(1, 25)), "every step has its metrics, of both layouts"
    head = read_head(store)
    assert head is not None
    assert verify(store, head.commits[0]).step == 24
