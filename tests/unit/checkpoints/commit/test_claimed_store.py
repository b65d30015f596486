"""Refused credentials, before and after a run is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.commit.claimed_store import REFUSALS, ClaimedStore, open_claimed_run
from checkpoints.errors import AccessDenied, BucketUnusable, ObjectMissing, StoreError
from checkpoints.save.uploader import _kind
from checkpoints.storage.object_store import ObjectStore


class Refusing:
    """A store that refuses so many requests."""

    def __init__(self, refusals: float) -> None:
        self.inner = ObjectStore.memory()
        self.refusals = refusals
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> object:
            self.asked += 1
            if self.asked <= self.refusals:
                raise AccessDenied("refuses access: ExpiredToken", "renew it")
            return getattr(self.inner, name)(*arguments)

        return call


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def test_a_token_that_is_refreshed_is_no_error(pauses: list[float]) -> None:
    refusing = Refusing(REFUSALS - 1)
    store = ClaimedStore(refusing)  # type: ignore[arg-type]
    store.put("key", b"value")
    assert store.get("key").data == b"value"
    assert len(pauses) == REFUSALS - 1
    assert sum(pauses) > 10, "with back-off"


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.get("k"),
        lambda store: store.get_range("k", 0, 1),
        lambda store: store.read_into("k", memoryview(bytearray(1))),
        lambda store: store.create("k", b""),
        lambda store: store.swap("k", b"", "t"),
        lambda store: store.put("k", b""),
        lambda store: store.put_file("k", Path("/nowhere")),
        lambda store: list(store.list("")),
        lambda store: store.folders(),
        lambda store: store.delete("k"),
    ],
)
def test_a_refusal_that_lasts_is_an_outage_and_no_users_error(act: object, pauses: list[float]) -> None:
    refusing = Refusing(float("inf"))
    with pytest.raises(StoreError, match="ExpiredToken"):
        act(ClaimedStore(refusing))  # type: ignore[operator,arg-type]
    assert refusing.asked == REFUSALS, "bounded"


def test_other_errors_pass_as_they_are(pauses: list[float]) -> None:
    class Full:
        url = "file:///full"

        def put(self, key: str, data: bytes) -> None:
            raise BucketUnusable("the disk is full")

    with pytest.raises(BucketUnusable, match="full"):
        ClaimedStore(Full()).put("k", b"")  # type: ignore[arg-type]
    with pytest.raises(ObjectMissing):
        ClaimedStore(ObjectStore.memory()).get("nothing")
    assert pauses == []


def test_missing_credentials_of_a_claimed_run_are_an_outage(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """The identity of a VM is asked of its metadata server, which may not answer."""
    answers = iter([AccessDenied("no credentials"), None])

    def open_run(*arguments: object) -> ObjectStore:
        if (error := next(answers)) is not None:
            raise error
        return ObjectStore.memory()

    monkeypatch.setattr("checkpoints.commit.claimed_store.open_run", open_run)
    assert open_claimed_run("s3://b", "r").url == "memory://"


def test_an_upload_that_was_refused_is_a_save_that_failed() -> None:
    assert _kind(StoreError("refused")) == "failed"
