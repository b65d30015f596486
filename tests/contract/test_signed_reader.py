"""Reading straight into memory: which connections are made."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from checkpoints.storage.base import ignore
from checkpoints.storage.presigned import Request, SignedReader
from tests.support.gcs_fake import FakeGcs
from tests.support.loopback import serving

DATA = bytes(range(256))


@pytest.fixture
def server() -> Iterator[FakeGcs]:
    with serving(FakeGcs(("bucket",))) as made:
        made.objects["bucket"]["key"] = (DATA, 1)
        yield made


class Cut:
    """A network on which no connection comes about any more."""

    def __init__(self) -> None:
        self.tries = 0

    def connect(self, connection: http.client.HTTPConnection) -> None:
        self.tries += 1
        raise TimeoutError("timed out")


@pytest.fixture
def cut() -> Cut:
    return Cut()


def read(reader: SignedReader) -> bytes:
    memory = bytearray(len(DATA))
    reader.read_into("key", memoryview(memory), ignore)
    return bytes(memory)


def test_a_host_that_was_never_reached_is_tried_once(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.client.HTTPConnection, "connect", lambda connection: cut.connect(connection))
    reader = SignedReader(lambda key: Request(f"http://store.example/bucket/{key}?signed", {}))
    for _ in range(3):
        with pytest.raises(OSError):
            read(reader)
    assert cut.tries == 1


def test_a_host_that_was_reached_is_tried_again(server: FakeGcs, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SignedReader(lambda key: Request(f"{server.url}/bucket/{key}?signed", {}))
    assert read(reader) == DATA
    with monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", lambda connection: cut.connect(connection))
        assert read(reader) == DATA, "over the connection that is there"
        reader._idle.pop()[1].close()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                read(reader)
    assert cut.tries == 2
    assert read(reader) == DATA
