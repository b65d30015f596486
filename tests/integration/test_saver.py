"""Saves that go wrong, with a real uploader process: nothing hangs, nothing is silently lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from checkpoints import Checkpointer
from checkpoints.commit.head import Lease, Writer, read_head
from checkpoints.commit.retention import Retention
from checkpoints.errors import Fenced, StoreError, TornState, UserError
from checkpoints.run_log.metrics import read_metrics
from checkpoints.run_log.run_record import open_run
from checkpoints.save.saver import Saver
from checkpoints.save.uploader import NICE, Inbox
from checkpoints.save.uploader_messages import Done, Setup
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.snapshot.snapshot import Plan
from checkpoints.storage.base import Store
from checkpoints.storage.probe import probe
from tests.integration.conftest import wait_for
from trainer.checkpointing.distributed_saver import MAX_FAILED_SAVES, DistributedSaver

STATE = {"s": {"w": np.arange(1000)}}


def break_bucket(run: Path) -> None:
    """Make every write of data fail: a file where a folder has to be."""
    (run / "data").write_text("in the way")


@pytest.mark.timeout(60)
def test_a_copy_that_fails_raises_and_gives_the_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Plan, target: memoryview) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(Plan, "copy", fail)
    with pytest.raises(RuntimeError, match="CUDA error"), Checkpointer(str(tmp_path), "run") as checkpoints:
        checkpoints.save(1, STATE)
    head = read_head(open_run(str(tmp_path), "run"))
    assert head is not None
    assert head.released


@pytest.mark.timeout(60)
def test_a_last_save_that_failed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError), Checkpointer(str(tmp_path), "run") as checkpoints:
        checkpoints.save(1, STATE, wait=True)
        for path in sorted((tmp_path / "run/data").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / "run/data").rmdir()
        break_bucket(tmp_path / "run")
        checkpoints.save(2, STATE)
    head = read_head(open_run(str(tmp_path), "run"))
    assert head is not None
    assert head.commits[0].step == 1
    assert head.released


@pytest.mark.timeout(60)
def test_a_loop_that_forgets_to_wait_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights change while the copy runs: nothing torn is committed, and the next call says what to do."""
    import torch

    begun, copy = threading.Event(), Plan.copy

    def late(self: Plan, target: memoryview) -> Any:
        assert begun.wait(30)
        return copy(self, target)

    monkeypatch.setattr(Plan, "copy", late)
    weights = torch.ones(100_000)
    with Checkpointer(str(tmp_path), "run") as checkpoints:
        checkpoints.save(1, {"s": {"w": weights}})
        weights.add_(1)
        begun.set()
        with pytest.raises(TornState, match="s/w was changed while it was copied") as caught:
            wait_for(lambda: bool(checkpoints.save(2, {"s": {"w": weights}}) and False), "the error", 30)
        assert "wait_copied" in caught.value.hint
        assert checkpoints.save(3, {"s": {"w": weights}}, wait=True)
    with Checkpointer(str(tmp_path), "run") as checkpoints:
        saved = checkpoints.restore()
        assert saved is not None
        assert checkpoints.step == 3
        assert torch.equal(saved["s"]["w"], weights)


@pytest.mark.timeout(60)
def test_the_first_error_is_the_one_to_see(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"), Checkpointer(str(tmp_path), "run") as checkpoints:
        break_bucket(tmp_path / "run")
        checkpoints.save(1, STATE)
        raise KeyError("mine")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("full", [False, True], ids=["in /dev/shm", "in the fallback"])
def test_a_restart_on_the_same_machine_restores_from_memory(tmp_path: Path, full: bool) -> None:
    """A process that was killed has left its snapshot in shared memory; the successor uses it, and gives it back."""
    store = open_run(str(tmp_path), "run")
    script = f"""
import numpy as np, os
from checkpoints import Checkpointer
checkpoints = Checkpointer({str(tmp_path)!r}, "run")
checkpoints.save(3, {{"s": {{"w": np.arange(1000)}}}}, wait=True)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    head = read_head(store)
    assert head is not None
    for chunk in (tmp_path / "run/data").rglob("c00000"):
        chunk.unlink()  # only the memory has it now
    if full:  # as where /dev/shm was too small
        memory = RunMemory(store.url)
        shutil.move(memory.snapshot(head.writer.id, 0), memory.fallback(head.writer.id, 0))
    with Checkpointer(str(tmp_path), "run", predecessor_gone=head.writer.id) as checkpoints:
        saved = checkpoints.restore()
        assert saved is not None
        assert np.array_equal(saved["s"]["w"], STATE["s"]["w"])
        assert RunMemory(store.url).left_by(head.writer.id, 0) is None
    assert not RunMemory(store.url).snapshot(checkpoints._lease.head.writer.id, 0).parent.exists()


@pytest.mark.timeout(60)
def test_a_fenced_predecessor_leaves_its_successors_memory_alone(tmp_path: Path) -> None:
    """Suspended for longer than its lease, it wakes up on the same machine and learns that it was replaced."""
    old = Checkpointer(str(tmp_path), "run")
    old.save(1, STATE, wait=True)
    with Checkpointer(str(tmp_path), "run", predecessor_gone=old._lease.head.writer.id) as new:
        assert new.restore() is not None
        assert new.save(2, STATE, wait=True)
        old.save(3, STATE)
        with pytest.raises(Fenced):
            old.close()
        assert new.save(4, {"s": {"w": np.arange(100_000)}}, wait=True)  # larger: the buffer is mapped anew
    head = read_head(open_run(str(tmp_path), "run"))
    assert head is not None
    assert head.commits[0].step == 4


def test_only_memory_of_the_dead_is_removed(tmp_path: Path) -> None:
    memory = RunMemory(f"file://{tmp_path}")
    script = f"""
import sys, time
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
memory = RunMemory("file://{tmp_path}")
memory.hold("child")
SharedBuffer(memory.snapshot("child", 0)).reserve(10)
SharedBuffer(memory.fallback("child", 1)).reserve(10)
print(flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory.hold("me")
        SharedBuffer(memory.snapshot("dead", 0)).reserve(10)
        memory.remove_dead(keep="child")
        assert memory.snapshot("child", 0).exists()
        memory.remove_dead()
        assert memory.snapshot("child", 0).exists()
        assert memory.fallback("child", 1).exists()
        assert memory.snapshot("me", 0).parent.is_dir()
        assert not memory.snapshot("dead", 0).parent.exists()
        child.kill()
    memory.remove_dead(keep="child")
    assert memory.snapshot("child", 0).exists(), "a successor may still restore from it"
    memory.remove_dead()
    assert not memory.snapshot("child", 0).parent.exists()
    assert not memory.fallback("child", 1).parent.exists()
    memory.forget("me")
    assert not memory.snapshot("me", 0).parent.exists()


@contextlib.contextmanager
def saver_of(tmp_path: Path, ranks: int) -> Iterator[Saver]:
    store = open_run(str(tmp_path), "run")
    head = Lease.claim(store, Writer(id=uuid.uuid4().hex, host="h", pid=os.getpid())).head
    setup = Setup(
        bucket=str(tmp_path),
        run="run",
        rank=0,
        world_size=ranks,
        writer_id=head.writer.id,
        epoch=head.epoch,
        retention=Retention(newest=2),
        chunk_bytes=1024,
    )
    made = Saver(setup, SharedBuffer(tmp_path / "buffer"))
    yield made
    made.close()


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[tuple[Saver, Path]]:
    with saver_of(tmp_path, ranks=1) as made:
        yield made, tmp_path / "run"


@pytest.mark.timeout(60)
def test_what_is_sent_of_the_first_save_is_known_before_it_is_done(tmp_path: Path) -> None:
    """A notice that comes just then has to be judged by it: giving up would lose all that was sent."""
    with saver_of(tmp_path, ranks=2) as saving:  # rank 1 never comes: uploaded, and not committed
        assert saving.bytes_per_second() is None
        saving.save(1, STATE)
        saving.wait_copied()
        assert saving.in_flight_bytes() <= 8000
        wait_for(lambda: saving.in_flight_bytes() == 0, "all chunks")
        assert saving.poll()
        assert saving.size_bytes == 8000
        assert saving.bytes_per_second()
        assert saving.costs is None
        saving.give_up()
        assert saving.in_flight_bytes() == 0
        assert saving.bytes_per_second() is None


@pytest.mark.timeout(60)
def test_the_training_comes_before_the_upload(saver: tuple[Saver, Path]) -> None:
    saving, _ = saver
    assert saving.save(1, STATE)
    saving.wait()
    assert psutil.Process(saving.uploader_pid).nice() == min(19, os.nice(0) + NICE)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("when", ["idle", "uploading", "given up"])
def test_an_uploader_that_is_killed_costs_one_save(tmp_path: Path, when: str) -> None:
    with saver_of(tmp_path, ranks=1 if when == "idle" else 2) as saving:  # with two it waits for rank 1
        if when != "idle":
            saving.save(1, STATE)
            wait_for(lambda: saving.in_flight_bytes() == 0, "the upload")
        killed = saving.uploader_pid
        os.kill(killed, signal.SIGKILL)
        if when == "idle":
            saving.save(1, STATE)
        if when == "given up":
            saving.give_up()
            assert saving.failure is None
        else:
            saving.wait()
            assert saving.failure is not None
            assert "has died" in saving.failure.message
            saving.failure = None
        assert saving.uploader_pid != killed
        assert saving.save(2, STATE)
        wait_for(lambda: saving.in_flight_bytes() == 0, "the next upload")
        saving.give_up()


@pytest.mark.timeout(60)
def test_memory_that_was_prepared_is_not_touched_in_the_first_save(saver: tuple[Saver, Path]) -> None:
    saving, run = saver
    saving.prepare(STATE)
    wait_for(lambda: saving.is_prepared, "the memory")
    size_bytes = (run.parent / "buffer").stat().st_size
    assert size_bytes >= 8000
    assert saving.save(1, STATE)
    saving.wait()
    assert saving.failure is None
    assert (run.parent / "buffer").stat().st_size == size_bytes


@pytest.mark.timeout(60)
def test_metrics_of_a_failed_save_go_with_the_next(saver: tuple[Saver, Path]) -> None:
    saving, run = saver
    (run / "metrics").write_text("in the way")
    assert saving.save(2, STATE, metrics=[{"step": 1}, {"step": 2}])
    saving.wait()
    assert saving.failure is not None
    assert saving.failure.error in ("failed", "user_error")
    saving.failure = None
    (run / "metrics").unlink()
    assert saving.save(3, STATE, metrics=[{"step": 3}])
    saving.wait()
    assert saving.failure is None
    assert saving.undelivered == []
    assert [line.step for line in read_metrics(open_run(str(run.parent), "run"))] == [1, 2, 3]


@pytest.mark.timeout(60)
def test_a_rank_killed_in_the_middle_of_a_line_still_ends_its_uploader() -> None:
    inbox = Inbox([b'{"abandon": 7}\n', b'{"number": 8, "step": 1'], drain_s=3600)
    inbox.start()
    assert inbox.jobs.get(timeout=10) is None
    assert inbox.ended_at is not None
    assert inbox.abandoned == {7}


class FailingSaver:
    """A saver whose saves fail as told."""

    def __init__(self) -> None:
        self.failure: Done | None = None
        self.done_count = 0
        self.newest_step = -1

    def finish(self, good: bool) -> None:
        self.done_count += good
        self.failure = None if good else Done(number=1, step=1, error="failed", message="no connection")

    def wait_copied(self) -> None: ...

    def poll(self) -> bool:
        return False

    def count_stall(self, seconds: float) -> None: ...

    def give_up(self) -> None:
        self.failure = None


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> tuple[DistributedSaver, FailingSaver]:
    saving = FailingSaver()
    setup = Setup(bucket="b", run="r", rank=0, world_size=1, writer_id="w", epoch=1, retention=Retention(newest=2))
    made = DistributedSaver(None, None, setup, saving)  # type: ignore[arg-type]
    monkeypatch.setattr("trainer.checkpointing.distributed_saver.gather", lambda value: [value])
    return made, saving


def test_saves_that_fail_in_a_row_end_the_run_also_when_the_step_end_finds_them(
    keeper: tuple[DistributedSaver, FailingSaver],
) -> None:
    keeping, saving = keeper
    for _ in range(MAX_FAILED_SAVES - 1):
        saving.finish(good=False)
        keeping.resolve_failure()  # at the end of a step
        keeping.settle(tolerant=True)  # before the next save: finds nothing, and that is no success
    saving.finish(good=False)
    with pytest.raises(StoreError, match="no connection"):
        keeping.resolve_failure()


def test_a_commit_ends_the_row(keeper: tuple[DistributedSaver, FailingSaver]) -> None:
    keeping, saving = keeper
    for _ in range(3 * MAX_FAILED_SAVES):
        saving.finish(good=False)
        keeping.resolve_failure()
        saving.finish(good=True)
        keeping.settle(tolerant=True)
    assert saving.done_count == 3 * MAX_FAILED_SAVES


class Unreachable:
    url = "s3://b"

    def put(self, key: str, data: Any) -> None:
        raise StoreError("503")

    def delete(self, key: str) -> None:
        raise StoreError("503")


def test_a_store_that_does_not_answer_is_not_the_users_error() -> None:
    store: Store = Unreachable()  # type: ignore[assignment]
    with pytest.raises(StoreError, match="503") as caught:
        probe(store)
    assert caught.value.exit_code == 1
