"""A model of the commit protocol under everything that goes wrong, in at least 10,000 random schedules.

Attempts run as greenlets over one store; after each store operation a seeded scheduler decides who goes on, who dies, whose
reply is lost, and how the clocks move. Zombies are simply attempts that are scheduled again after a successor has claimed.
The attempts run the product's own code: claim, restore, upload, commit, renew, collect.

Checked all the time:
  - what is read from HEAD is whole and is what was saved for that step (0 corrupt reads);
  - a commit that was acknowledged stays (0 lost commits);
  - HEAD's epoch and newest step never go back, and nobody commits with an old epoch;
  - what a reader beside them has announced stays whole until it is done.
"""

from __future__ import annotations

import os
import random
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import greenlet
import pytest

from checkpoints.commit.garbage_collection import collect, collect_orphans
from checkpoints.commit.head import PATIENCE_S, Head, Lease, Writer, read_head
from checkpoints.commit.reader_leases import FOLDER, VALID, announce
from checkpoints.commit.retention import Retention
from checkpoints.errors import AlreadyExists, Conflict, CorruptCheckpoint, Fenced, ObjectMissing, RunHeld, StoreError
from checkpoints.records.manifest import Manifest
from checkpoints.records.save_keys import save_prefix
from checkpoints.restore.shard_restore import restore_shard
from checkpoints.save.shard_upload import upload_shard, uploaded_shards
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Entry, Seen, Store, Stored
from tests.support.seaweed import S3Server

SCHEDULES = int(os.environ.get("NOTUS_SCHEDULES", "10000"))
RANKS = 2
KEEP = 2


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greenlets can't change threads."""
    monkeypatch.setattr("checkpoints.commit.garbage_collection.CONCURRENCY", 1)
    monkeypatch.setattr("checkpoints.commit.head_recovery.CONCURRENCY", 1)


class DictStore:
    """The smallest store there is."""

    url = "dict://"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.version = 0

    def get(self, key: str) -> Stored:
        if key not in self.objects:
            raise ObjectMissing(key)
        data, version = self.objects[key]
        return Stored(data, str(version))

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        return memoryview(self.get(key).data)[start : start + length]

    def read_into(self, key: str, target: memoryview, seen: Seen) -> int:
        data = self.get(key).data
        target[: len(data)] = data[: len(target)]
        seen(target[: len(data)])
        return len(data)

    def create(self, key: str, data: Any) -> str:
        if key in self.objects:
            raise AlreadyExists(key)
        return self._write(key, data)

    def swap(self, key: str, data: Any, token: str) -> str:
        if key not in self.objects or str(self.objects[key][1]) != token:
            raise Conflict(key)
        return self._write(key, data)

    def put(self, key: str, data: Any) -> None:
        self._write(key, data)

    def list(self, prefix: str) -> list[Entry]:
        return [Entry(key, len(self.objects[key][0])) for key in sorted(self.objects) if key.startswith(f"{prefix}/")]

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def _write(self, key: str, data: Any) -> str:
        self.version += 1
        self.objects[key] = (bytes(data), self.version)
        return str(self.version)


class Crash(BaseException):
    """The process is gone. Not an Exception: no handler of the product may see it."""


class World:
    """The scheduler: time, faults, and who goes on."""

    def __init__(self, store: Any, seed: int) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.hub = greenlet.getcurrent()
        self.acknowledged = 0
        self.last_head: Head | None = None
        self.ends: Counter[str] = Counter()

    def operation(self, actor: Attempt | Reading, act: Callable[[], Any], *, write: bool) -> Any:
        """One store operation of an attempt: others may run before it; it may fail, crash, or lose its reply."""
        self.hub.switch()
        fate = self.random.random()
        if fate < 0.015:
            raise Crash
        if fate < 0.03:
            raise StoreError("no connection")
        try:
            result = act()
        finally:
            if write:
                self.check_head()
        if write and fate < 0.07:
            # The reply is lost. The client tries a conditional write again and meets its own success; any other write
            # simply succeeds twice; or the process dies before it hears of its success.
            if fate < 0.04:
                raise Crash
            if actor.conditional:
                raise (AlreadyExists if actor.conditional == "create" else Conflict)("a retry met its own success")
        return result

    def check_head(self) -> None:
        """The invariants that hold after every write."""
        head = read_head(self.store)
        if head is None:
            return
        if self.last_head is not None:
            assert head.epoch >= self.last_head.epoch, "the epoch went back"
            old = self.last_head.commits[0].step if self.last_head.commits else 0
            new = head.commits[0].step if head.commits else 0
            assert new >= old, "the committed step went back"
            if new > old:
                assert head.commits[0].epoch == head.epoch, "a fenced writer has committed"
        assert not {c.manifest for c in head.commits} & {t.commit.manifest for t in head.tombstones}
        self.last_head = head


class SteppedStore:
    """The store as one attempt sees it."""

    url = "stepped://"

    def __init__(self, world: World, actor: Attempt | Reading) -> None:
        self.world, self.actor = world, actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        inner = getattr(self.world.store, name)

        def call(*arguments: Any) -> Any:
            self.actor.conditional = name if name in ("create", "swap") else ""
            act: Callable[[], Any] = lambda: inner(*arguments)  # noqa: E731
            if name == "list":
                act = lambda: list(inner(*arguments))  # noqa: E731
            return self.world.operation(self.actor, act, write=name in ("create", "swap", "delete", "put"))

        return call


class SkewedClock:
    """A machine's own idea of the time: off by minutes, and its monotonic clock starts where it likes."""

    def __init__(self, world: World, skew_s: float) -> None:
        self.world, self.skew = world, timedelta(seconds=skew_s)
        self.booted = datetime(2000, 1, 1, tzinfo=UTC) + 1000 * self.skew

    def now(self) -> datetime:
        return self.world.now + self.skew

    def monotonic(self) -> float:
        return (self.world.now - self.booted).total_seconds()

    def sleep(self, seconds: float) -> None:
        """Everybody else goes on meanwhile."""
        self.world.now += timedelta(seconds=seconds)
        self.world.hub.switch()


def content(step: int, rank: int) -> dict[str, Any]:
    return {"state": {"step": step, "rank": rank, "bytes": b"%08d-%d" % (step, rank) * 3}}


class Attempt:
    """A machine that claims, restores, and saves until it is fenced, done, or dead."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.conditional = ""
        self.store: Any = SteppedStore(world, self)
        self.clock = SkewedClock(world, world.random.uniform(-300, 300))
        self.writer = Writer(id=f"{number:04d}{uuid.UUID(int=world.random.getrandbits(128)).hex[:8]}", host="h", pid=1)
        self.alive = True
        self.greenlet = greenlet.greenlet(self._run)

    def _run(self) -> None:
        try:
            self._train()
        except (Crash, Fenced, RunHeld, StoreError) as end:
            self.world.ends[type(end).__name__] += 1
        finally:
            self.alive = False

    def _train(self) -> None:
        gone = ""
        if self.world.random.random() < 0.5 and (head := read_head(self.store)):
            gone = head.writer.id  # the orchestrator says so; it may even be wrong, the fence holds all the same
        wait_s = self.world.random.choice([0.0, PATIENCE_S])
        lease = Lease.claim(self.store, self.writer, gone=gone, wait_s=wait_s, clock=self.clock)
        step = self._restore(lease.head)
        for number in range(self.world.random.randint(1, 4)):
            step += self.world.random.randint(1, 3)
            try:
                self._save(lease, step, number)
            except (Fenced, Crash):
                raise
            except StoreError:
                continue  # training goes on; the next save is another step
            if self.world.random.random() < 0.3:
                lease.renew()
        lease.release()

    def _restore(self, head: Head) -> int:
        if not head.commits:
            assert self.world.acknowledged == 0, "a commit was lost"
            return 0
        newest = head.commits[0]
        assert newest.step >= 1
        for rank in range(RANKS):
            try:
                shard = restore_shard(self.store, newest, rank)
            except CorruptCheckpoint as error:
                raise AssertionError(f"corrupt read: {error.message}") from error
            assert shard.trees() == content(newest.step, rank), "another step's bytes"
        return newest.step

    def _save(self, lease: Lease, step: int, number: int) -> None:
        prefix = save_prefix(lease.head.epoch, step, self.writer.id, number)
        ranks = list(range(RANKS))
        self.world.random.shuffle(ranks)
        for rank in ranks:
            snapshot = Snapshot.take(content(step, rank), HostBuffer())
            upload_shard(self.store, prefix, rank, snapshot, concurrency=1)
        shards = uploaded_shards(self.store, prefix)
        if len(shards) < RANKS:
            lease.check()  # a successor has collected them: then we are fenced
            raise AssertionError("shards of a living attempt were deleted")
        manifest = Manifest(
            run="r",
            step=step,
            epoch=lease.head.epoch,
            world_size=RANKS,
            created_at=self.clock.now(),
            reason="interval",
            fingerprint={},
            shards=tuple(shards),
        )
        lease.commit(manifest, Retention(newest=KEEP))
        self.world.acknowledged = max(self.world.acknowledged, step)
        newest = read_head(self.world.store)
        assert newest is not None
        assert newest.commits[0].step >= step, "an acknowledged commit is gone"
        if self.world.random.random() < 0.6:
            collect(self.store, lease, self.clock.now())
        if self.world.random.random() < 0.4:
            collect_orphans(self.store, lease, before_save=number)


class Reading:
    """Somebody with `notus-ckpt`, who says what is read and reads it slowly."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.conditional = ""
        self.store: Any = SteppedStore(world, self)
        self.clock = SkewedClock(world, world.random.uniform(-300, 300))
        self.key = f"{FOLDER}/{number}.json"
        self.alive = True
        self.greenlet = greenlet.greenlet(self._run)

    def _run(self) -> None:
        try:
            self._read()
        except (Crash, StoreError) as end:
            self.world.ends[f"reader {type(end).__name__}"] += 1
        finally:
            self.alive = False

    def _read(self) -> None:
        head = read_head(self.store)
        if head is None or not head.commits:
            return
        commit = self.world.random.choice(head.commits)
        began = self.world.now
        announce(self.store, self.key, [commit], self.clock)
        for rank in range(RANKS):
            for _ in range(self.world.random.randint(0, 150)):  # a slow link
                self.world.hub.switch()
            try:
                shard = restore_shard(self.store, commit, rank)
            except CorruptCheckpoint as error:
                if self.world.now - began > VALID - 2 * timedelta(seconds=600):
                    return  # nobody renewed the word here
                raise AssertionError(f"deleted while it was read: {error.message}") from error
            assert shard.trees() == content(commit.step, rank), "another step's bytes"
        self.world.ends["reader done"] += 1
        self.store.delete(self.key)


def run_schedule(store: Any, seed: int) -> World:
    """One random schedule, to its end."""
    world = World(store, seed)
    attempts: list[Attempt | Reading] = [Attempt(world, number) for number in range(world.random.randint(2, 6))]
    attempts[1:1] = [
        Reading(world, number) for number in range(world.random.randint(0, 2))
    ]  # the last one starts first
    started: list[Attempt | Reading] = []
    while attempts or any(attempt.alive for attempt in started):
        if attempts and (not any(a.alive for a in started) or world.random.random() < 0.05):
            started.append(attempts.pop())
        if world.random.random() < 0.02:
            world.now += timedelta(seconds=world.random.choice([1, 30, 90, 600]))
        runnable = [attempt for attempt in started if attempt.alive]
        if runnable:
            world.random.choice(runnable).greenlet.switch()
    final_check(world)
    return world


def final_check(world: World) -> None:
    """Whatever happened: all that HEAD names is whole, and no acknowledged commit is lost."""
    head = read_head(world.store)
    if head is None:
        assert world.acknowledged == 0
        return
    if world.acknowledged:
        assert head.commits[0].step >= world.acknowledged
    for commit in head.commits:
        for rank in range(RANKS):
            assert restore_shard(world.store, commit, rank).trees() == content(commit.step, rank)


def test_random_schedules_in_memory() -> None:
    epochs = commits = 0
    ends: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        store = DictStore()
        try:
            world = run_schedule(store, seed)
        except AssertionError as error:
            raise AssertionError(f"schedule with seed {seed}: {error}") from error
        head = world.last_head
        epochs += head.epoch if head else 0
        commits += world.acknowledged > 0
        ends += world.ends
    # the schedules must really do something, or they prove nothing
    assert epochs > 1.5 * SCHEDULES
    assert commits > 0.5 * SCHEDULES
    for end in ("Crash", "Fenced", "RunHeld", "StoreError", "reader done"):
        assert ends[end] > 0.01 * SCHEDULES, f"too few attempts ended with {end}: {ends}"


def test_random_schedules_on_s3(s3_environment: S3Server) -> None:
    schedules, epochs, commits = max(1, SCHEDULES // 40), 0, 0
    for seed in range(schedules):
        world = run_schedule(_PlainStore(open_store("s3://notus-test/schedules", uuid.uuid4().hex)), seed)
        epochs += world.last_head.epoch if world.last_head else 0
        commits += world.acknowledged > 0
    assert epochs > 1.5 * schedules
    assert commits > 0.4 * schedules


class _PlainStore:
    """A real store with the names that the model uses."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("sabotage", ["no fence", "early delete", "readers ignored"])
def test_the_model_notices_a_broken_protocol(sabotage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the test: with a protocol that is wrong on purpose the schedules must fail."""
    if sabotage == "no fence":

        def blind(self: DictStore, key: str, data: Any, token: str) -> str:
            return self._write(key, data)

        monkeypatch.setattr(DictStore, "swap", blind)
    elif sabotage == "readers ignored":
        monkeypatch.setattr(
            "checkpoints.commit.garbage_collection.manifests_being_read", lambda store, unchanged: set()
        )
    else:
        monkeypatch.setattr(
            "checkpoints.commit.garbage_collection.expired", lambda head, buried_s: _all_but_newest(head)
        )
    with pytest.raises(AssertionError):
        _run_schedules(2000)


def _run_schedules(count: int) -> None:
    for seed in range(count):
        run_schedule(DictStore(), seed)


def _all_but_newest(head: Head) -> tuple[Any, ...]:
    from checkpoints.commit.head import Tombstone

    until = datetime(2026, 1, 1, tzinfo=UTC)
    return tuple(Tombstone(commit=commit, until=until) for commit in head.commits)
