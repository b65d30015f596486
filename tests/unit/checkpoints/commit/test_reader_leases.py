"""What somebody reads is not deleted meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from checkpoints.commit import reader_leases
from checkpoints.commit.garbage_collection import collect, collect_orphans
from checkpoints.commit.head import BURIED_S, Lease, Writer
from checkpoints.commit.reader_leases import FOLDER, VALID, announce, manifests_being_read, reading
from checkpoints.errors import BucketUnusable, StoreError
from checkpoints.restore.shard_restore import verify
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from checkpoints.util.stillness import Unchanged
from tests.unit.checkpoints.restore.test_shard_restore import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run()
    monkeypatch.setattr(reader_leases, "SystemClock", lambda: made.clock)
    return made


def test_a_checkpoint_that_is_read_outlives_its_tombstone(run: Run) -> None:
    commit = run.save(1, keep=2)
    with reading(run.store, [commit]):
        for step in (2, 3, 4):
            run.save(step, keep=2)
        run.clock.sleep(VALID.total_seconds() / 2)
        assert collect(run.store, run.lease, run.clock.now()) == 1, "only the one that nobody reads"
        collect_orphans(run.store, run.lease)
        assert verify(run.store, commit).step == 1
    assert not list(run.store.list(FOLDER))
    assert collect(run.store, run.lease, run.clock.now()) == 1


def test_a_reader_that_died_protects_nothing_for_long(run: Run) -> None:
    commit = run.save(1, keep=1)
    announce(run.store, f"{FOLDER}/dead.json", [commit], run.clock)
    run.save(2, keep=1)
    run.clock.sleep(BURIED_S)
    assert collect(run.store, run.lease) == 0, "it is seen for the first time"
    run.clock.sleep(VALID.total_seconds() - 1)
    assert collect(run.store, run.lease, run.clock.now()) == 0
    run.clock.sleep(2)
    assert collect(run.store, run.lease, run.clock.now()) == 1
    assert not list(run.store.list(FOLDER))


def test_a_word_that_is_renewed_holds(run: Run) -> None:
    """Also where the reader's clock stands still."""
    commit, unchanged, stands_still = run.save(1), Unchanged(run.clock), FakeClock()
    for _ in range(5):
        announce(run.store, f"{FOLDER}/one.json", [commit], stands_still)
        assert manifests_being_read(run.store, unchanged) == {commit.manifest}
        run.clock.sleep(VALID.total_seconds() - 1)
        assert manifests_being_read(run.store, unchanged) == {commit.manifest}
    run.clock.sleep(2)
    assert manifests_being_read(run.store, unchanged) == set()


@pytest.mark.parametrize("skew_s", [-61 * 60.0, 61 * 60.0, -10 * 365 * 86400.0, 10 * 365 * 86400.0])
def test_a_readers_clock_decides_nothing(run: Run, skew_s: float) -> None:
    commit = run.save(1, keep=2)
    announce(run.store, f"{FOLDER}/x.json", [commit], FakeClock(run.clock.now() + timedelta(seconds=skew_s)))
    for step in (2, 3):
        run.save(step, keep=2)
    run.clock.sleep(BURIED_S + 1)
    assert collect(run.store, run.lease, run.clock.now()) == 0
    assert verify(run.store, commit).step == 1
    run.clock.sleep(VALID.total_seconds())
    assert collect(run.store, run.lease, run.clock.now()) == 1, "it died: nobody has renewed its word"


@pytest.mark.parametrize("skew_s", [-86400.0, 86400.0])
def test_the_clock_of_who_buried_a_checkpoint_decides_nothing(run: Run, skew_s: float) -> None:
    run.save(1, keep=1)
    run.clock.set(run.clock.now() + timedelta(seconds=skew_s))
    run.save(2, keep=1)
    run.lease.release()
    clock = FakeClock()
    successor = Lease.claim(run.store, Writer(id="w2", host="h", pid=2), clock=clock)
    assert collect(run.store, successor) == 0, "it is seen for the first time"
    clock.sleep(BURIED_S - 1)
    assert collect(run.store, successor) == 0
    clock.sleep(1)
    assert collect(run.store, successor) == 1


def test_a_checkpoint_that_was_replaced_is_not_read(run: Run) -> None:
    commit = run.save(1, keep=1)
    run.save(2, keep=1)
    with pytest.raises(StoreError, match="step 1 has just been replaced"), reading(run.store, [commit]):
        raise AssertionError("never gets here")
    assert not list(run.store.list(FOLDER))


def test_a_damaged_word_is_removed(run: Run) -> None:
    run.store.put(f"{FOLDER}/odd.json", b"{}")
    assert manifests_being_read(run.store, Unchanged(run.clock)) == set()
    assert not list(run.store.list(FOLDER))


def test_who_may_not_write_reads_all_the_same(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    class ReadOnly:
        url = "s3://read-only"

        def __getattr__(self, name: str) -> Any:
            return getattr(run.store, name)

        def put(self, key: str, data: bytes) -> None:
            raise BucketUnusable("no right to write")

    commit = run.save(1)
    with reading(ReadOnly(), [commit]):  # type: ignore[arg-type]
        assert verify(run.store, commit).step == 1
    assert "may delete what is read" in caplog.text
    assert isinstance(run.store, ObjectStore)
