"""One contract, every store."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import stamina

from checkpoints.errors import AlreadyExists, BucketUnusable, Conflict, ObjectMissing, UserError
from checkpoints.records.write_once import put_once
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Buffer, Entry, Store, Stored, exists
from checkpoints.storage.filesystem import FolderStore
from checkpoints.storage.object_store import ObjectStore
from checkpoints.storage.probe import RACERS, probe
from tests.support.azurite import ACCOUNT, azurite
from tests.support.gcs_fake import fake_gcs
from tests.support.loopback import LoopbackServer, QuietHandler, serving
from tests.support.seaweed import S3Server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with fake_gcs(tmp_path_factory.mktemp("gcs"), "notus-test") as environment:
        yield environment


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with azurite(tmp_path_factory.mktemp("azurite"), "notus-test") as environment:
        yield environment


@pytest.fixture(params=["memory", "folder", "s3", "gcs", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return ObjectStore.memory()
    if request.param == "folder":
        return FolderStore(tmp_path, "run")
    if request.param in ("gcs", "azure"):
        for name, value in request.getfixturevalue(request.param).items():
            request.getfixturevalue("monkeypatch").setenv(name, value)
        url = "gs://notus-test/prefix" if request.param == "gcs" else f"az://{ACCOUNT}/notus-test/prefix"
        return open_store(url, f"run-{uuid.uuid4().hex[:8]}")
    request.getfixturevalue("s3_environment")
    return open_store("s3://notus-test/prefix", f"run-{uuid.uuid4().hex[:8]}")


def test_what_was_written_is_read(store: Store) -> None:
    token = store.create("a/b.json", b"one")
    assert store.get("a/b.json") == (b"one", token)
    store.put("a/b.json", memoryview(b"three"))
    assert store.get("a/b.json").data == b"three"
    assert bytes(store.get_range("a/b.json", 1, 3)) == b"hre"
    assert bytes(store.get_range("a/b.json", 0, 100)) == b"three"
    assert bytes(store.get_range("a/b.json", 5, 1)) == b""
    store.put("empty", b"")
    assert bytes(store.get_range("empty", 0, 1)) == b""


def test_read_into_fills_memory_that_is_there(store: Store) -> None:
    data = bytes(range(256)) * 1000
    store.put("data/c0", data)
    for length in (len(data), 1000):
        memory = bytearray(length + 10)
        size = store.read_into("data/c0", memoryview(memory)[:length])
        assert bytes(memory) == data[:length] + bytes(10)
        assert size == len(data) if length == len(data) else size > length
    longer = bytearray(len(data) + 5)
    pieces: list[bytes] = []
    assert store.read_into("data/c0", memoryview(longer), lambda piece: pieces.append(bytes(piece))) == len(data)
    last_start = max((i for i, piece in enumerate(pieces) if not piece), default=-1)
    assert b"".join(pieces[last_start + 1 :]) == data
    assert bytes(longer) == data + bytes(5)
    store.put("empty", b"")
    assert store.read_into("empty", memoryview(bytearray(3))) == 0
    with pytest.raises(ObjectMissing, match="no/such"):
        store.read_into("no/such", memoryview(bytearray(3)))


def test_create_is_once(store: Store) -> None:
    store.create("key", b"first")
    with pytest.raises(AlreadyExists):
        store.create("key", b"second")
    assert store.get("key").data == b"first"


def test_swap_needs_the_newest_token(store: Store) -> None:
    old = store.create("HEAD", b"1")
    new = store.swap("HEAD", b"2", old)
    with pytest.raises(Conflict):
        store.swap("HEAD", b"3", old)
    assert store.get("HEAD") == (b"2", new)


def test_swap_of_a_missing_object_fails(store: Store) -> None:
    token = store.create("HEAD", b"1")
    store.delete("HEAD")
    with pytest.raises((Conflict, ObjectMissing)):
        store.swap("HEAD", b"2", token)


def test_missing_objects_are_named(store: Store) -> None:
    for read in (lambda: store.get("no/such"), lambda: store.get_range("no/such", 0, 1)):
        with pytest.raises(ObjectMissing, match="no/such"):
            read()
    store.delete("no/such")


def test_list_is_sorted_and_below_the_folder(store: Store) -> None:
    for key in ("b/2", "b/1", "a", "b/c/3", "bb/1"):
        store.put(key, b"x" * len(key))
    assert [(entry.key, entry.size_bytes) for entry in store.list("b")] == [("b/1", 3), ("b/2", 3), ("b/c/3", 5)]
    assert [entry.key for entry in store.list("")] == ["a", "b/1", "b/2", "b/c/3", "bb/1"]
    assert list(store.list("nothing")) == []


def test_folders_are_those_at_the_top(store: Store) -> None:
    assert store.folders() == []
    for key in ("b/2", "b/c/3", "a/1", "file"):
        store.put(key, b"x")
    assert store.folders() == ["a", "b"]


def test_put_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 100_000)
    store.put_file("final/weights.bin", path)
    assert store.get("final/weights.bin").data == path.read_bytes()


def test_put_once_takes_its_own_earlier_success(store: Store) -> None:
    put_once(store, "data/c0", b"bytes")
    put_once(store, "data/c0", b"bytes")
    with pytest.raises(AlreadyExists):
        put_once(store, "data/c0", b"other")


@pytest.mark.parametrize("kind", ["create", "swap"])
def test_races_have_one_winner(store: Store, kind: str) -> None:
    token = store.create("HEAD", b"start") if kind == "swap" else ""
    barrier = threading.Barrier(8)
    wins: list[int] = []

    def race(number: int) -> None:
        barrier.wait()
        try:
            if kind == "swap":
                store.swap("HEAD", b"%d" % number, token)
            else:
                store.create("HEAD", b"%d" % number)
        except (AlreadyExists, Conflict):
            return
        wins.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.get("HEAD").data == b"%d" % wins[0]


def test_probe_leaves_nothing(store: Store) -> None:
    probe(store)
    assert list(store.list("")) == []


class NoCreateOnce(ObjectStore):
    """Replaces what it was asked to create."""

    def create(self, key: str, data: Buffer) -> str:
        self.put(key, data)
        return self.get(key).token


class NoCompare(ObjectStore):
    """Swaps whatever the token is."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        self.put(key, data)
        return self.get(key).token


class NoSwap(ObjectStore):
    """Never swaps."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        raise Conflict(key)


class LostReplies(ObjectStore):
    """The reply to every successful swap is lost, and its retry meets its own success."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        super().swap(key, data, token)
        raise Conflict(key)


class RacyCreate(ObjectStore):
    """Looks, and then writes: all who looked at the same moment succeed."""

    together = threading.Barrier(RACERS)

    def create(self, key: str, data: Buffer) -> str:
        try:
            self.get(key)
        except ObjectMissing:
            if key.endswith("-race"):
                self.together.wait(30)
            self.put(key, data)
            return self.get(key).token
        raise AlreadyExists(key)


class RacySwap(ObjectStore):
    """The same, by its token."""

    together = threading.Barrier(RACERS)
    alone = True

    def create(self, key: str, data: Buffer) -> str:
        type(self).alone = not key.endswith("-race")  # the race of creates comes right before that of swaps
        return super().create(key, data)

    def swap(self, key: str, data: Buffer, token: str) -> str:
        if self.get(key).token != token:
            raise Conflict(key)
        if not self.alone:
            self.together.wait(30)
        self.put(key, data)
        return self.get(key).token


class NeverCreates(ObjectStore):
    """Says that what isn't there exists already, as a proxy that answers 412 to every condition does."""

    def create(self, key: str, data: Buffer) -> str:
        raise AlreadyExists(key)


class Stale(ObjectStore):
    """Gives back what was there before the last write, for a while: a cache in front of the store."""

    before: Stored | None = None

    def put(self, key: str, data: Buffer) -> None:
        with contextlib.suppress(ObjectMissing):
            self.before = super().get(key)
        super().put(key, data)

    def get(self, key: str) -> Stored:
        told, self.before = self.before or super().get(key), None
        return told


class Remembers(ObjectStore):
    """Gives back what was deleted, until it's asked once more."""

    asked = False

    def delete(self, key: str) -> None:
        if self.asked or not key.endswith("-race"):
            super().delete(key)
        self.asked = True


class SwapsNothing(ObjectStore):
    """Creates what it was asked to replace."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        if not exists(self, key):
            return self.create(key, data)
        return super().swap(key, data, token)


class Retains(ObjectStore):
    """A name that was deleted is never free again."""

    deleted: ClassVar[set[str]] = set()

    def delete(self, key: str) -> None:
        self.deleted.add(key)
        super().delete(key)

    def create(self, key: str, data: Buffer) -> str:
        if key in self.deleted:
            raise AlreadyExists(key)
        return super().create(key, data)


class NoListing(ObjectStore):
    """Refuses to list, as a bucket does to credentials without s3:ListBucket."""

    def list(self, prefix: str) -> Iterable[Entry]:
        raise BucketUnusable("AccessDenied")


class ForgetsToList(ObjectStore):
    """Lists nothing new."""

    def list(self, prefix: str) -> Iterable[Entry]:
        return []


def test_a_store_that_cannot_be_listed_is_refused() -> None:
    with pytest.raises(BucketUnusable, match="written and read, but not listed: AccessDenied") as caught:
        probe(NoListing.memory())
    assert "s3:ListBucket" in caught.value.hint
    with pytest.raises(BucketUnusable, match="does not list an object that was just written"):
        probe(ForgetsToList.memory())


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Stale, "gives back an older version"),
        (Remembers, "gives back an object that was deleted"),
        (SwapsNothing, "creates an object that it was asked to replace"),
        (Retains, "refuses to create an object where one was deleted"),
        (RacyCreate, "lets several create the same object at once"),
        (RacySwap, "lets several replace an object by one token at once"),
        (NoCreateOnce, "asked to create"),
        (NoCompare, "token of an older version"),
        (NoSwap, "refuses to replace"),
        (NeverCreates, "refuses to create an object under the condition that there is none"),
    ],
)
def test_a_store_without_a_fence_is_refused(kind: type[ObjectStore], fault: str) -> None:
    store = kind.memory()
    with pytest.raises(BucketUnusable, match=fault) as caught:
        probe(store)
    assert "gs://" in caught.value.hint
    assert list(store.list("")) == []


class WithoutConditions(QuietHandler):
    """An S3 that answers a conditional write with 501, as Backblaze B2 does."""

    objects: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match") or self.headers.get("If-Match"):
            self.asked.append(self.path)
            return self._answer(
                501, b"<Error><Code>NotImplemented</Code><Message>A header is not known</Message></Error>"
            )
        self.objects[self.path] = data
        return self._answer(200)

    def do_GET(self) -> None:
        self._answer(200, self.objects[self.path])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"<DeleteResult></DeleteResult>")


def test_a_store_that_knows_no_conditions_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(LoopbackServer(WithoutConditions)) as server:
        for name, value in S3Server(server.url).environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BucketUnusable, match="NotImplemented") as caught:
            probe(open_store("s3://notus-test/x"))
    assert "conditional writes" in caught.value.hint
    assert len(WithoutConditions.asked) < 15, "one round of the client's own tries"


class BadRequest(WithoutConditions):
    """An S3 that answers a conditional write with 400."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match") or self.headers.get("If-Match"):
            return self._answer(400, b"<Error><Code>InvalidArgument</Code></Error>")
        self.objects[self.path] = data
        return self._answer(200)


def test_a_store_that_takes_conditions_for_a_bad_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(LoopbackServer(BadRequest)) as server, stamina.set_testing(True, attempts=6, cap=True):
        for name, value in S3Server(server.url).environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(BucketUnusable, match="takes writes, but none with a condition") as caught:
            probe(open_store("s3://notus-test/x"))
    assert "InvalidArgument" in caught.value.message
    assert "conditional writes" in caught.value.hint


class Busy(WithoutConditions):
    """An S3 that answers conditional writes with AWS's 409, `left` times."""

    objects: ClassVar[dict[str, bytes]] = {}
    left: ClassVar[int] = 0

    def do_PUT(self) -> None:
        conditional = self.headers.get("If-None-Match") or self.headers.get("If-Match")
        if conditional and Busy.left > 0:
            Busy.left -= 1
            self.rfile.read(int(self.headers["Content-Length"]))
            return self._answer(409, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        return self._answer(200)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving(LoopbackServer(Busy)) as server, stamina.set_testing(True, attempts=6, cap=True):
        for name, value in S3Server(server.url).environment().items():
            monkeypatch.setenv(name, value)
        yield open_store("s3://notus-test/x")


def test_a_conflict_with_another_writer_is_tried_again(busy: Store) -> None:
    """It came out as "exists already", of an object that didn't exist, and ended a commit."""
    Busy.left = 3
    busy.create("a", b"1")
    assert Busy.left == 0
    Busy.left = 1
    busy.swap("a", b"2", "x")


def test_a_store_that_is_always_in_conflict_is_told(busy: Store) -> None:
    Busy.left = 10_000
    with pytest.raises(AlreadyExists, match="ConditionalRequestConflict"):
        busy.create("b", b"1")
    with pytest.raises(Conflict, match="ConditionalRequestConflict"):
        busy.swap("b", b"2", "x")


def test_a_swap_that_met_its_own_success_is_no_fault() -> None:
    store = LostReplies.memory()
    probe(store)
    assert list(store.list("")) == []


def test_gcs_through_its_s3_interface_is_refused(gcs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = json.loads(Path(gcs["GOOGLE_SERVICE_ACCOUNT"]).read_text())["gcs_base_url"]
    for name, value in S3Server(url).environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BucketUnusable, match="asked to create"):  # it ignores S3's conditions, as rclone's server does
        probe(open_store("s3://notus-test/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://storage.googleapis.com")
    with pytest.raises(UserError, match="S3 interface") as caught:
        open_store("s3://bucket", "x")
    assert "gs://bucket," in caught.value.hint


def test_a_missing_bucket_is_named(
    tmp_path: Path, s3_environment: S3Server, gcs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gcs.items():
        monkeypatch.setenv(name, value)
    for url in (str(tmp_path / "nowhere"), "s3://no-such-bucket/x", "gs://no-such-bucket/x"):
        with pytest.raises(BucketUnusable, match="does not exist") as caught:
            probe(open_store(url, "run"))
        assert caught.value.exit_code == 2
        assert "create it" in caught.value.hint
    assert not (tmp_path / "nowhere").exists()


def test_wrong_credentials_are_said(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BucketUnusable, match="refuses access") as caught:
        probe(open_store("s3://notus-test/x"))
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert "wrong" not in caught.value.message + caught.value.hint


def test_a_read_only_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the kernel's answer is played instead of chmod.
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BucketUnusable, match="no permission"):
        probe(FolderStore(tmp_path, "run"))


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(UserError, match="unknown scheme 'ftp'"):
        open_store("ftp://host/x")
    with pytest.raises(UserError, match="names no bucket"):
        open_store("s3:///x")
