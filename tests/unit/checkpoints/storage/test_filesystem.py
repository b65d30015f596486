"""What killed writers left in a folder is collected, and nothing of live ones."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from checkpoints.errors import BucketUnusable
from checkpoints.run_log.run_record import list_runs
from checkpoints.storage import filesystem
from checkpoints.storage.filesystem import FolderStore


def age(path: Path) -> None:
    os.utime(path, (0, 0))


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A temporary file of a writer that was killed long ago."""
    folder = tmp_path / "run" / ".tmp"
    folder.mkdir(parents=True)
    path = folder / "dead"
    path.write_bytes(bytes(100))
    age(path)
    return path


def test_a_dead_writers_file_goes_with_the_first_write(tmp_path: Path, left: Path) -> None:
    store = FolderStore(tmp_path, "run")
    assert left.exists()
    store.put("key", b"data")
    assert list(left.parent.iterdir()) == []
    assert [entry.key for entry in store.list("")] == ["key"]


def test_a_young_file_stays(tmp_path: Path, left: Path) -> None:
    young = left.with_name("young")
    young.write_bytes(b"")
    FolderStore(tmp_path, "run").put("key", b"data")
    assert list(left.parent.iterdir()) == [young]


@pytest.mark.parametrize("method", ["create", "put"])
def test_a_live_writers_file_stays_however_old_it_is(
    tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    sync, slow = filesystem.os.fsync, FolderStore(tmp_path, "run")

    def meanwhile(descriptor: int) -> None:
        """In the middle of the slow writer's write: a successor opens the folder, and collects."""
        monkeypatch.setattr(filesystem.os, "fsync", sync)
        for path in left.parent.iterdir():
            age(path)
        FolderStore(tmp_path, "run").put("other", b"data")

    left.unlink()
    monkeypatch.setattr(filesystem.os, "fsync", meanwhile)
    getattr(slow, method)("key", b"slow")
    assert slow.get("key").data == b"slow"
    assert list(left.parent.iterdir()) == []


def test_without_locks_nothing_is_collected(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(filesystem.fcntl, "flock", no_locks)
    FolderStore(tmp_path, "run").put("key", b"data")
    assert left.exists()


def test_a_file_is_no_bucket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BucketUnusable, match="is not a folder"):
        list_runs(str(tmp_path / "file"))
    assert list_runs(str(tmp_path / "not-there-yet")) == []


def test_a_deleted_object_leaves_no_lock(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, "run")
    store.swap("HEAD", b"2", store.create("HEAD", b"1"))
    assert list((tmp_path / "run/.locks").iterdir()) != []
    store.delete("HEAD")
    assert list((tmp_path / "run/.locks").iterdir()) == []


def test_who_waited_for_the_lock_of_a_deleted_object_takes_a_new_one(tmp_path: Path) -> None:
    """Else it would hold the lock of a file that is gone, beside another writer with a new one."""
    store, entered, go = FolderStore(tmp_path, "run"), threading.Event(), threading.Event()
    store.create("HEAD", b"1")

    def delete() -> None:
        with store._locked("HEAD"):
            entered.set()
            assert go.wait(30)
            store._lock_of("HEAD").unlink()

    deleting = threading.Thread(target=delete)
    deleting.start()
    assert entered.wait(30)
    held: list[bool] = []

    def wait() -> None:
        with store._locked("HEAD"):
            held.append(store._lock_of("HEAD").exists())

    waiting = threading.Thread(target=wait)
    waiting.start()
    go.set()
    deleting.join(30)
    waiting.join(30)
    assert held == [True]
