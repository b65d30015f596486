"""What somebody reads is not deleted meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from checkpoints import readers
from checkpoints.errors import BucketUnusable, StoreError
from checkpoints.object_store import ObjectStore
from checkpoints.readers import FOLDER, VALID, announce, manifests_being_read, reading
from checkpoints.restore import verify
from checkpoints.retention import collect, collect_orphans
from tests.unit.test_restore import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run()
    monkeypatch.setattr(readers, "SystemClock", lambda: made.clock)
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
    run.clock.sleep(VALID.total_seconds() - 1)
    assert collect(run.store, run.lease, run.clock.now()) == 0
    run.clock.sleep(2)
    assert collect(run.store, run.lease, run.clock.now()) == 1
    assert not list(run.store.list(FOLDER))


def test_a_word_that_is_renewed_holds(run: Run) -> None:
    commit = run.save(1)
    for _ in range(3):
        announce(run.store, f"{FOLDER}/one.json", [commit], run.clock)
        run.clock.sleep((VALID - timedelta(seconds=1)).total_seconds())
        assert manifests_being_read(run.store, run.clock.now()) == {commit.manifest}


def test_a_checkpoint_that_was_replaced_is_not_read(run: Run) -> None:
    commit = run.save(1, keep=1)
    run.save(2, keep=1)
    with pytest.raises(StoreError, match="step 1 has just been replaced"), reading(run.store, [commit]):
        raise AssertionError("never gets here")
    assert not list(run.store.list(FOLDER))


def test_a_damaged_word_is_removed(run: Run) -> None:
    run.store.put(f"{FOLDER}/odd.json", b"{}")
    assert manifests_being_read(run.store, run.clock.now()) == set()
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
