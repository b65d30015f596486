"""A checkpoint is condemned only by what is still so after seconds, and through another connection."""

from __future__ import annotations

import pytest

from checkpoints.errors import CorruptCheckpoint
from checkpoints.records import verified_reads
from checkpoints.records.verified_reads import reread_slowly
from checkpoints.storage.base import Store
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock

PAUSES_S = (1.0, 4.0)


class Proxied(ObjectStore):
    """Behind a proxy that answers wrongly for as long as a connection lives."""

    made = 0

    def reconnected(self) -> ObjectStore:
        type(self).made += 1
        return ObjectStore.memory()


@pytest.fixture(autouse=True)
def _pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PAUSES_S
    monkeypatch.setattr(verified_reads, "PAUSES_S", PAUSES_S)  # the other tests have none


def test_wrong_bytes_of_one_connection_condemn_nothing() -> None:
    clock, store = FakeClock(), Proxied.memory()
    seen: list[float] = []

    def read(through: Store) -> str:
        seen.append(clock.monotonic())
        if isinstance(through, Proxied):
            raise CorruptCheckpoint("differs")
        return "good"

    assert reread_slowly(store, read, clock) == "good"
    assert seen[1] - seen[0] >= 1.0


def test_damage_is_believed_after_seconds() -> None:
    clock, began, looks = FakeClock(), FakeClock().monotonic(), []

    def read(store: Store) -> None:
        looks.append(clock.monotonic())
        raise CorruptCheckpoint("differs")

    with pytest.raises(CorruptCheckpoint):
        reread_slowly(ObjectStore.memory(), read, clock)
    assert len(looks) == len(PAUSES_S) + 1
    assert clock.monotonic() - began >= 5.0


def test_what_is_good_is_read_once() -> None:
    looks: list[Store] = []
    reread_slowly(ObjectStore.memory(), looks.append, FakeClock())
    assert len(looks) == 1
