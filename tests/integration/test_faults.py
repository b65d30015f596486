"""What goes wrong around a run: damage, a second launcher, Ctrl-C, a dead launcher, a full disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import S3Store

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.errors import ObjectMissing
from checkpoints.records.write_once import put_once
from checkpoints.restore.shard_restore import verify
from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage import presigned, s3
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Entry, Store
from tests.integration.conftest import Launcher, assert_bit_exact, recipe, wait_for
from tests.support.faulty_proxy import FaultyProxy
from tests.support.loopback import serving
from tests.support.seaweed import S3Server


def test_second_launcher_ctrl_c_damage_and_resume(launcher: Launcher, reference: Store) -> None:
    arguments = launcher.local("tiny-dpo", "--name", "run")
    process = launcher.start(*arguments)
    wait_for(lambda: launcher.progress_step("run") >= 7, "step 7")

    second = launcher.run(*arguments)
    assert second.code == 2
    assert re.search(r"the run is held by attempt 1 on \S+ \(pid \d+\)", second.err)
    assert "Traceback" not in second.err

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "saving and stopping" in err
    assert launcher.processes() == []
    store = open_run(launcher.bucket, "run")
    head = read_head(store)
    assert head is not None
    stopped_at = head.commits[0]
    assert load_manifest(store, stopped_at).reason in ("stop", "epoch", "evaluation")
    assert f"stopped; saved at step {stopped_at.step}" in err

    # one flipped byte in the newest checkpoint, on rank 1 only: all ranks go back to the one before
    chunk = load_index(store, load_manifest(store, stopped_at).shards[1]).chunks[0]
    data = bytearray(store.get(chunk.key).data)
    data[1000] ^= 1
    store.put(chunk.key, bytes(data))
    before = head.commits[1].step

    receipt = launcher.run(*arguments).receipt()
    assert receipt["damaged_checkpoints"] == 1
    assert receipt["attempts"][-1]["from_step"] == before
    damaged = [event for event in read_events(store) if event.kind == "damaged"]
    assert damaged[0].data["step"] == stopped_at.step
    assert "rank 1" in damaged[0].data["fault"]
    assert chunk.key in damaged[0].data["fault"]
    assert_bit_exact(store, reference)

    # launching a finished run again trains nothing and still ends well
    again = launcher.run(*arguments)
    assert again.receipt()["steps"] == 24


@pytest.mark.slow
def test_accumulation_remainder_and_the_end_in_mid_epoch(launcher: Launcher) -> None:
    """24 micro-steps an epoch in steps of 5, the last of 4; the end at step 8 of 10. Steps slower than the supervisor's
    tick, so a stop goes all the way through it."""
    mine = recipe(
        launcher.home,
        "tiny-dpo",
        ("per_device_batch: 4", "per_device_batch: 2\n  accumulation: 5\n  max_steps: 8"),
        ("every_steps: 5", "every_steps: 2"),
    )
    arguments = launcher.local(mine, "--name", "run")
    process = launcher.start(*arguments)
    wait_for(lambda: launcher.progress_step("run") >= 3, "step 3")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    store = open_run(launcher.bucket, "run")
    events = read_events(store)
    assert [e.data["outcome"] for e in events if e.kind == "attempt_ended"] == ["preempted"]
    assert [e.data["source"] for e in events if e.kind == "notice"] == ["user"]

    assert launcher.run(*arguments).receipt()["steps"] == 8
    launcher.run(*launcher.local(mine, "--name", "twin")).receipt()
    assert_bit_exact(store, open_run(launcher.bucket, "twin"))

    # killed between the last save and the export: the next attempt exports and trains no step more
    assert launcher.run(*arguments).receipt()["steps"] == 8
    head = read_head(store)
    assert head is not None
    assert head.commits[0].step == 8
    assert_bit_exact(store, open_run(launcher.bucket, "twin"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopped_before_the_first_save(launcher: Launcher, sign: signal.Signals) -> None:
    """A newcomer's first minute."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "run"))
    store = open_run(launcher.bucket, "run")
    wait_for(lambda: any(event.kind == "attempt_started" for event in read_events(store)), "the attempt's start")
    process.send_signal(sign)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert [event.kind for event in read_events(store)][-2:] == ["attempt_ended", "stopped"]
    (status,) = json.loads(launcher.run("status", "run", "-o", "json").out)
    assert status["state"] == "stopped"
    assert launcher.processes() == []


@pytest.mark.slow
def test_stopped_in_the_middle_of_an_evaluation(launcher: Launcher) -> None:
    """LoRA with dropout: a generator that is one draw off would show in every later loss."""
    mine = recipe(
        launcher.home,
        "tiny-dpo-lora",
        ("eval_rows: 16", "eval_rows: 64"),
        ("per_device_eval_batch: 4", "per_device_eval_batch: 1"),
    )
    arguments = launcher.local(mine, "--name", "run")
    process = launcher.start(*arguments)
    wait_for(lambda: launcher.progress("run").phase == "evaluating", "an evaluation")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    store = open_run(launcher.bucket, "run")
    events = read_events(store)
    assert not [event for event in events if event.kind == "evaluated"], "the stop came after the evaluation"
    head = read_head(store)
    assert head is not None
    assert load_manifest(store, head.commits[0]).reason == "epoch"

    # A notice in the evaluation that the resume makes up for: its step is committed already.
    process = launcher.start(*arguments)
    wait_for(lambda: launcher.progress("run").phase == "evaluating", "the evaluation that was due")
    launcher.announce_preemption("run", seconds=30)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    ended = [event.data["outcome"] for event in read_events(store) if event.kind == "attempt_ended"]
    assert ended == ["preempted", "preempted", "finished"]

    launcher.run(*launcher.local(mine, "--name", "twin")).receipt()
    twin = open_run(launcher.bucket, "twin")
    assert_bit_exact(store, twin)
    evaluations = [
        [(e.data["step"], e.data["metrics"]["eval_loss"]) for e in read_events(run) if e.kind == "evaluated"]
        for run in (store, twin)
    ]
    assert len(evaluations[0]) == 2
    assert evaluations[0] == evaluations[1]


def test_a_launcher_that_is_killed_leaves_nothing_behind(launcher: Launcher) -> None:
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "orphan"))
    wait_for(lambda: launcher.progress_step("orphan") >= 6, "step 6")
    process.kill()
    process.communicate()
    wait_for(lambda: launcher.processes() == [], "the end of all processes", 60)
    store = open_run(launcher.bucket, "orphan")
    head = read_head(store)
    assert head is not None
    assert verify(store, head.commits[0]).reason == "stop", "the attempt had the time to save"


def test_a_full_disk_ends_the_run_with_one_clear_line(launcher: Launcher, tmp_path: Path) -> None:
    """A file system with room for the start and a checkpoint or two, but not for the run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2600k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        done = launcher.run(*launcher.local("tiny-dpo", "--name", "full", "--bucket", str(disk)))
        assert done.code == 2
        assert "the disk is full" in done.err
        assert "Traceback" not in done.err
        store = open_run(str(disk), "full")
        head = read_head(store)
        assert head is not None
        assert verify(store, head.commits[0]).step >= 5, "what was committed before is whole"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a", "chosen": "b"}', "has no column 'rejected'"),
        ("{broken", ":1: not JSON"),
        ('{"prompt": "a", "chosen": "same", "rejected": "same"}', "none of the 1 rows"),
    ],
)
def test_bad_data_is_refused_before_anything_starts(launcher: Launcher, row: str, message: str) -> None:
    launcher.home.mkdir()
    (launcher.home / "pairs.jsonl").write_text(row + "\n")
    mine = recipe(launcher.home, "tiny-dpo", ("builtin:tiny-preferences", "pairs.jsonl"))
    done = launcher.run(*launcher.local(mine, "--name", "bad"))
    assert done.code == 2
    assert message in done.err
    assert not (Path(launcher.bucket) / "bad").exists()


def test_another_recipe_under_the_same_name_is_refused(launcher: Launcher, reference: Store) -> None:
    bucket = os.path.dirname(reference.url.removeprefix("file://"))  # noqa: PTH120
    done = launcher.run(*launcher.local("tiny-dpo-lora", "--name", "reference", "--bucket", bucket))
    assert done.code == 2
    assert "exists with another recipe: " in done.err


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(launcher: Launcher, tmp_path: Path) -> None:
    changes = [("beta: 0.1", "beta: 1.0e+17"), ("rate: 5.0e-4", "rate: 1.0"), ("every_steps: 5", "every_steps: 1")]
    wild = recipe(tmp_path, "tiny-dpo", *changes)
    done = launcher.run(*launcher.local(wild, "--name", "wild"))
    assert done.code == 2
    found = re.search(r"(the loss is nan|the gradient's norm is \S+) at step (\d+): training stops, (.+)", done.err)
    assert found, done.err
    step = int(found[2])
    assert step == 3, "the warm-up's first update is by 0, so the second one is wild"
    # which saves have arrived by then is the disk's affair
    assert found[3].split(";")[0] in ("the last good checkpoint is that of step 1", "there is no good checkpoint")
    assert "lower training.learning_rate (now 1)" in done.err
    store = open_run(launcher.bucket, "wild")
    head = read_head(store)
    assert head is not None
    assert all(commit.step < step for commit in head.commits)
    events = read_events(store)
    assert [event.kind for event in events].count("attempt_started") == 1, "the ranks' verdict is never retried"
    assert events[-1].kind == "failed"


class Refuses(FaultyProxy):
    """Once it is told to, answers 403 to so many requests: an expired token, a policy that is still spreading."""

    def __init__(self, target: str) -> None:
        super().__init__(target, share=0.0, seed=0)
        self.left = 0

    def fate(self, request: str) -> str:
        with self.lock:
            self.left -= 1
            return "403" if self.left >= 0 else ""


@pytest.mark.parametrize("refused", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_credentials_that_are_refused_in_mid_run_are_no_users_error(
    launcher: Launcher, s3_server: S3Server, reference: Store, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """4 are waited for; 40 are more than one save's patience, and the next save or the next attempt makes up for it."""
    with serving(Refuses(s3_server.endpoint)) as proxy:
        launcher.environment |= s3_server.environment() | {"AWS_ENDPOINT_URL": proxy.url}
        bucket = f"s3://notus-test/refused-{refused}"
        process = launcher.start(*launcher.local("tiny-dpo", "--name", "refused", "--bucket", bucket))
        wait_for(lambda: launcher.progress_step("refused") >= 3, "step 3")
        proxy.left = refused
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        assert sum(count for deed, count in proxy.done.items() if deed.fault == "403") == refused
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    store = open_run(bucket, "refused")
    assert {e.data["outcome"] for e in read_events(store) if e.kind == "attempt_ended"} <= {"failed", "finished"}
    assert_bit_exact(store, reference)


class StallsOnce(FaultyProxy):
    """Holds one request back for longer than the client waits, and carries it out after that."""

    def __init__(self, target: str) -> None:
        super().__init__(target, share=0.0, seed=0, stall_s=2 * PATIENCE_S)
        self.ready = False

    def fate(self, request: str) -> str:
        with self.lock:
            ready, self.ready = self.ready, False
            return "stall" if ready else ""


PATIENCE_S = 1.0
"""The product's is 30 s."""


class ImpatientS3Store(S3Store):
    def __new__(cls, *arguments: Any, client_options: Any, **settings: Any) -> ImpatientS3Store:
        options = {**client_options, "timeout": timedelta(seconds=PATIENCE_S)}
        return super().__new__(cls, *arguments, client_options=options, **settings)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        pass


def _read_into(store: Store) -> bytes:
    target = bytearray(3)
    assert store.read_into("old", memoryview(target)) == 3
    return bytes(target)


def _missing_after(store: Store) -> bool:
    store.delete("old")
    with pytest.raises(ObjectMissing):
        store.get("old")
    return True


@pytest.mark.parametrize(
    ("act", "result"),
    [
        (lambda store: store.get("old").data, b"old"),
        (_read_into, b"old"),
        (lambda store: list(store.list("")), [Entry("old", 3)]),
        (lambda store: (store.put("new", b"new"), store.get("new").data)[1], b"new"),
        (lambda store: (put_once(store, "new", b"new"), store.get("new").data)[1], b"new"),
        (_missing_after, True),
    ],
    ids=["get", "read_into", "list", "put", "create", "delete"],
)
def test_a_stall_beyond_the_clients_patience_is_tried_again(
    act: Callable[[Store], object],
    result: object,
    request: pytest.FixtureRequest,
    s3_environment: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also a write: the request that was held back comes to the server after the one that took its place."""
    monkeypatch.setattr(s3, "S3Store", ImpatientS3Store)
    monkeypatch.setattr(presigned, "TIMEOUT_S", PATIENCE_S)
    with serving(StallsOnce(s3_environment.endpoint)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store("s3://notus-test/stalls", request.node.callspec.id)
        store.put("old", b"old")
        proxy.ready = True
        assert act(store) == result
        assert proxy.done.total() == 1
