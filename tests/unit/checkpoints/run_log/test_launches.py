"""Launches are numbered in the bucket, and waits count what they waited: no clock decides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from checkpoints.errors import AlreadyExists
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.launches import newest_launch, newest_launch_number, take_launch_number
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Buffer, Store
from checkpoints.storage.filesystem import FolderStore
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock, looks
from launcher.commands import stop_run


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return ObjectStore.memory() if request.param == "memory" else FolderStore(tmp_path, "r")


def test_each_launch_takes_the_next_number(store: Store) -> None:
    assert (newest_launch_number(store), newest_launch(store)) == (0, None)
    assert [take_launch_number(store, f"s{number}") for number in (1, 2, 3)] == [1, 2, 3]
    made = newest_launch(store)
    assert made is not None
    assert (made.number, made.submission) == (3, "s3")


def test_two_launchers_at_once_get_two_numbers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create, clock = type(store).create, FakeClock()
    raced: list[int] = []

    def create_after_another(self: Store, key: str, data: Buffer) -> str:
        if not raced:
            raced.append(0)
            raced.append(take_launch_number(store, "", clock))  # with the same submission, at the same moment
        return create(self, key, data)

    monkeypatch.setattr(type(store), "create", create_after_another)
    assert take_launch_number(store, "", clock) == 2
    assert raced == [0, 1]


def test_a_create_whose_answer_was_lost_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore.memory()
    create = ObjectStore.create

    def create_twice(self: ObjectStore, key: str, data: Buffer) -> str:
        create(self, key, data)
        raise AlreadyExists("the client's own retry met its first try")

    monkeypatch.setattr(ObjectStore, "create", create_twice)
    assert take_launch_number(store, "s") == 1
    assert newest_launch_number(store) == 1


def test_events_tell_their_launch_and_old_ones_are_read() -> None:
    store = ObjectStore.memory()
    Diary(store, 0, FakeClock()).write("planned")
    Diary(store, 0, FakeClock(datetime(2026, 1, 2, tzinfo=UTC)), launch=4).write("planned")
    assert [event.launch for event in read_events(store)] == [0, 4]


def test_a_wait_looks_at_once_and_once_more_at_its_end() -> None:
    clock = FakeClock()
    assert list(looks(clock, 2.0, 5.0)) == [0.0, 2.0, 4.0, 6.0]
    assert list(looks(clock, 2.0, 0.0)) == [0.0]


def test_a_computer_that_slept_has_not_waited(tmp_path: Path) -> None:
    """The lid is closed for an hour between two looks; the trainer has saved and ended meanwhile."""
    store = open_run(f"file://{tmp_path}", "r")

    class Laptop(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.now() < datetime(2026, 1, 1, 0, 30, tzinfo=UTC):
                self.set(self.now() + timedelta(hours=1))
                return
            Diary(store, 1, self).write("stopped", step=7, reason="by the user")

    assert stop_run._save_and_end(store, "r", Laptop())


def test_a_trainer_that_does_not_answer_is_not_waited_for_longer(tmp_path: Path) -> None:
    clock = FakeClock()
    assert not stop_run._save_and_end(open_run(f"file://{tmp_path}", "r"), "r", clock)
    assert stop_run.ANSWER_S <= clock.monotonic() < stop_run.ANSWER_S + 2 * stop_run.POLL_S
