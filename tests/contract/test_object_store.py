"""What an object store's clients do on the wire: how long they wait, and what they sign."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import stamina

from checkpoints.errors import StoreError
from checkpoints.storage import obstore_client, s3
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.s3 import S3
from tests.support.loopback import LoopbackServer, QuietHandler, serving

LARGE = bytes(2 << 20)


class SlowServer(LoopbackServer):
    """Takes every request whole and answers a PUT after `delay_s`; anything else, or without a delay, never."""

    def __init__(self) -> None:
        super().__init__(_Slow)
        self.delay_s: float | None = None
        self.closing = threading.Event()
        self.hashes: list[str | None] = []


class _Slow(QuietHandler):
    server: SlowServer

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.hashes.append(self.headers.get("x-amz-content-sha256"))
        if self.server.delay_s is None:
            self.do_GET()
            return
        time.sleep(self.server.delay_s)
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.closing.wait()
        self.close_connection = True

    do_HEAD = do_DELETE = do_GET


@pytest.fixture
def server() -> Iterator[SlowServer]:
    with serving(SlowServer()) as made:
        yield made
        made.closing.set()


@pytest.fixture
def opened(server: SlowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ObjectStore]]:
    """Opens the bucket; nothing is tried twice."""
    environment = {"AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
    monkeypatch.setattr(s3, "RETRY", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)})
    with stamina.set_testing(True):
        yield lambda: S3().open("s3://bucket/run", environment)


def test_a_large_upload_may_take_longer_than_an_answer(
    server: SlowServer, opened: Callable[[], ObjectStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obstore_client, "ANSWER_S", 0.1)
    server.delay_s = 0.5
    store = opened()
    assert store.create("chunk", LARGE) == '"1"'
    assert store.swap("chunk", LARGE, '"0"') == '"1"'
    store.put("chunk", LARGE)
    with pytest.raises(StoreError, match="chunk"):
        store.create("chunk", b"small")


@pytest.mark.parametrize("limit", ["ANSWER_S", "REQUEST_S"])
def test_a_store_that_never_answers_is_given_up(
    opened: Callable[[], ObjectStore], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(obstore_client, limit, 0.1)
    store = opened()
    asks: list[Callable[[], object]] = [
        lambda: store.get("HEAD"),
        lambda: store.get_range("HEAD", 0, 1),
        lambda: store.create("HEAD", b"small"),
        lambda: store.swap("HEAD", b"small", "1"),
        lambda: list(store.list("")),
        lambda: store.delete("HEAD"),
    ]
    if limit == "REQUEST_S":
        asks += [lambda: store.create("HEAD", LARGE), lambda: store.put("HEAD", LARGE)]
    for ask in asks:
        with pytest.raises(StoreError):
            ask()


def test_the_limits_let_a_slow_link_save() -> None:
    for limits in obstore_client.limits():
        assert limits["timeout"] >= timedelta(minutes=5), "64 MiB at 0.2 MB/s"


@pytest.mark.parametrize("endpoint", ["", "https://r2.example"])
def test_no_upload_is_hashed_for_its_signature(endpoint: str) -> None:
    environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
    for store in s3._clients("bucket", "run", environment):
        assert store.config.get("unsigned_payload") == "true"


def test_an_upload_says_that_its_payload_is_unsigned(server: SlowServer, opened: Callable[[], ObjectStore]) -> None:
    server.delay_s = 0.0
    opened().create("chunk", LARGE)
    assert server.hashes == ["UNSIGNED-PAYLOAD"]
