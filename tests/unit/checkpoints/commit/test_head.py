"""Commit and fence: who may write, and that steps never go backwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.commit.head import HEAD_KEY, LEASE_S, PATIENCE_S, Lease, Writer, lease_over_s, read_head, silent_holder
from checkpoints.commit.head_recovery import find_remains
from checkpoints.commit.retention import Retention, Score, best_of
from checkpoints.errors import Conflict, CorruptCheckpoint, Fenced, RunHeld, StoreError
from checkpoints.records.manifest import Manifest
from checkpoints.records.write_once import put_once
from checkpoints.run_log.event_log import Diary
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from checkpoints.util.stillness import Unchanged


def writer(name: str) -> Writer:
    return Writer(id=name, host=f"host-{name}", pid=1)


def manifest(step: int, epoch: int, clock: FakeClock) -> Manifest:
    return Manifest(
        run="r",
        step=step,
        epoch=epoch,
        world_size=1,
        created_at=clock.now(),
        reason="interval",
        fingerprint={},
        shards=(),
    )


def test_the_first_claim_makes_epoch_one() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    head = read_head(store)
    assert head is not None
    assert (head.epoch, head.writer.id, lease.head) == (1, "a", head)


def test_a_running_lease_is_respected_and_its_holder_named() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    Lease.claim(store, writer("a"), clock=clock)
    clock.sleep(10)
    with pytest.raises(RunHeld, match=r"attempt 1 on host-a \(pid 1\), which is alive or died without") as caught:
        Lease.claim(store, writer("b"), clock=clock)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("how", ["lease over", "known dead", "released"])
def test_a_successor_takes_over(how: str) -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    old = Lease.claim(store, writer("a"), clock=clock)
    if how == "released":
        old.release()
    gone, wait_s = "a" if how == "known dead" else "", PATIENCE_S if how == "lease over" else 0.0
    new = Lease.claim(store, writer("b"), clock=clock, gone=gone, wait_s=wait_s)
    assert new.head.epoch == 2
    assert clock.monotonic() == (lease_over_s(LEASE_S) if wait_s else 0), "a known end is waited for by nobody"


def test_a_successor_can_wait_for_the_lease() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    Lease.claim(store, writer("a"), clock=clock)
    started = clock.now()
    new = Lease.claim(store, writer("b"), clock=clock, wait_s=2 * LEASE_S)
    assert new.head.epoch == 2
    assert LEASE_S <= (clock.now() - started).total_seconds() < LEASE_S + 5
    with pytest.raises(RunHeld):
        Lease.claim(store, writer("c"), clock=clock, wait_s=LEASE_S / 2)


def test_renewals_keep_the_run() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    for _ in range(10):
        clock.sleep(LEASE_S * 0.9)
        lease.renew()
    with pytest.raises(RunHeld):
        Lease.claim(store, writer("b"), clock=clock)


# --- clocks -------------------------------------------------------------------------------------------

SKEWS_S = (0.0, 61.0, -61.0, 3600.0, -3600.0, 10 * 365 * 86400.0)


def own_clock(skew_s: float) -> FakeClock:
    """Another machine's: what its wall clock says is its affair."""
    return FakeClock(FakeClock().now() + timedelta(seconds=skew_s))


class Shared(FakeClock):
    """A claimer's clock. While it waits the world goes on: `world` is told how long it has waited."""

    def __init__(self, world: Callable[[float], None], skew_s: float = 0.0) -> None:
        super().__init__(own_clock(skew_s).now())
        self._world = world

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._world(self.monotonic())


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_a_dead_holder_is_replaced_after_one_lease_whatever_its_clock_said(skew_s: float) -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    Lease.claim(store, writer("dead"), clock=own_clock(skew_s))
    assert Lease.claim(store, writer("b"), clock=clock, wait_s=PATIENCE_S).head.epoch == 2
    assert clock.monotonic() == lease_over_s(LEASE_S)


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_no_clock_takes_a_live_run_from_its_holder(skew_s: float) -> None:
    """Its own clock stands still: a renewal has to be seen all the same."""
    store = ObjectStore.memory()
    held = Lease.claim(store, writer("alive"), clock=FakeClock())
    with pytest.raises(RunHeld):
        Lease.claim(store, writer("b"), clock=own_clock(skew_s))

    def world(waited_s: float) -> None:
        if waited_s % 20 == 0:
            held.renew()

    claimer = Shared(world, skew_s)
    with pytest.raises(RunHeld, match="which is alive: it has just changed HEAD"):
        Lease.claim(store, writer("b"), clock=claimer, wait_s=PATIENCE_S)
    assert claimer.monotonic() == PATIENCE_S
    held.renew()


def test_a_holder_that_dies_while_one_waits_is_replaced_within_the_patience() -> None:
    store = ObjectStore.memory()
    held = Lease.claim(store, writer("a"))
    clock = Shared(lambda waited_s: held.renew() if waited_s <= 50 else None)
    assert Lease.claim(store, writer("b"), clock=clock, wait_s=PATIENCE_S).head.epoch == 2
    assert clock.monotonic() == 50 + lease_over_s(LEASE_S)


def test_a_clock_that_is_set_while_one_waits_changes_nothing() -> None:
    store = ObjectStore.memory()
    held = Lease.claim(store, writer("a"))

    def world(waited_s: float) -> None:
        clock.set(clock.now() + timedelta(hours=1))
        if waited_s % 20 == 0:
            held.renew()

    clock = Shared(world)
    with pytest.raises(RunHeld):
        Lease.claim(store, writer("b"), clock=clock, wait_s=PATIENCE_S)


def test_a_slow_answer_counts_only_from_its_end() -> None:
    """HEAD may have changed while the first answer was on its way."""
    clock = FakeClock()
    unchanged = Unchanged(clock)
    clock.sleep(50)
    assert unchanged.seconds("HEAD", "t", asked_at=0.0) == 0
    clock.sleep(50)
    assert unchanged.seconds("HEAD", "t", asked_at=70.0) == 20
    assert not unchanged.has_changed("HEAD")
    assert unchanged.seconds("HEAD", "u", asked_at=100.0) == 0
    assert unchanged.has_changed("HEAD")
    assert not unchanged.has_changed("never seen")


def test_a_person_who_claims_hears_at_once_that_the_holder_lives() -> None:
    store = ObjectStore.memory()
    held = Lease.claim(store, writer("alive"))
    for claim in (
        lambda clock: Lease.claim(store, writer("b"), clock=clock, wait_s=PATIENCE_S, patient=False),
        lambda clock: silent_holder(store, clock),
    ):
        clock = Shared(lambda waited_s: held.renew() if waited_s == 20 else None)
        with pytest.raises(RunHeld, match="which is alive"):
            claim(clock)
        assert clock.monotonic() == 20


def test_whether_a_holder_is_dead_is_known_after_one_lease() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    assert silent_holder(store, clock) == ""
    held = Lease.claim(store, writer("a"), clock=own_clock(3600))
    assert silent_holder(store, clock) == "a"
    assert clock.monotonic() == lease_over_s(LEASE_S)
    held.release()
    assert silent_holder(store, clock) == ""
    assert clock.monotonic() == lease_over_s(LEASE_S), "what was given back is known at once"


def test_a_lease_that_an_older_version_gave_back_costs_one_lease() -> None:
    """It wrote the time of its own clock."""
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("old"), clock=clock)
    store.put(HEAD_KEY, lease.head.model_copy(update={"lease_until": clock.now()}).to_json())
    assert Lease.claim(store, writer("b"), clock=clock, wait_s=PATIENCE_S).head.epoch == 2


def test_an_older_version_reads_what_is_given_back_as_over() -> None:
    store, clock = ObjectStore.memory(), own_clock(-10 * 365 * 86400.0)
    lease = Lease.claim(store, writer("a"), clock=clock)
    assert lease.head.lease_until > clock.now()
    assert not lease.head.released
    lease.release()
    head = read_head(store)
    assert head is not None
    assert head.released
    assert head.lease_until < clock.now()


def test_no_two_versions_of_head_are_the_same_bytes() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    tokens = [store.get(HEAD_KEY).token]
    for act in (lease.renew, lease.renew, lambda: lease.commit(manifest(5, 1, clock), Retention(newest=1)), lease.renew,
                lambda: lease.score(5, Score(metric="m", value=1.0)), lease.release, lease.release):  # fmt: skip
        act()
        tokens.append(store.get(HEAD_KEY).token)
    assert len(set(tokens)) == len(tokens)


def test_a_zombie_cannot_commit_renew_or_release() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    zombie = Lease.claim(store, writer("a"), clock=clock)
    successor = Lease.claim(store, writer("b"), clock=clock, gone="a")
    successor.commit(manifest(5, 2, clock), Retention(newest=2))
    for act in (zombie.renew, zombie.release, lambda: zombie.commit(manifest(9, 1, clock), Retention(newest=2))):
        with pytest.raises(Fenced, match="attempt 2 on host-b has taken over"):
            act()
    head = read_head(store)
    assert head is not None
    assert [commit.step for commit in head.commits] == [5]


def test_steps_never_go_backwards() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(5, 1, clock), Retention(newest=2))
    with pytest.raises(StoreError, match="step 4 is not newer"):
        lease.commit(manifest(4, 1, clock), Retention(newest=2))


def test_a_retried_commit_is_its_own_success() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    saved = manifest(5, 1, clock)
    lease.commit(saved, Retention(newest=2))
    lease.commit(saved, Retention(newest=2))
    head = read_head(store)
    assert head is not None
    assert [commit.step for commit in head.commits] == [5]


def test_older_commits_become_tombstones() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    for step in (1, 2, 3, 4):
        lease.commit(manifest(step, 1, clock), Retention(newest=2))
    head = read_head(store)
    assert head is not None
    assert [commit.step for commit in head.commits] == [4, 3]
    assert [stone.commit.step for stone in head.tombstones] == [1, 2]
    assert all(stone.until >= clock.now() + timedelta(seconds=LEASE_S) for stone in head.tombstones)


def test_training_can_go_on_from_before_a_damaged_checkpoint() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(5, 1, clock), Retention(newest=3))
    damaged = lease.commit(manifest(10, 1, clock), Retention(newest=3))
    lease.discard([(damaged, "a chunk is cut")])
    lease.commit(manifest(7, 1, clock), Retention(newest=3))
    assert [commit.step for commit in lease.head.commits] == [7, 5]
    assert not lease.head.tombstones, "what is damaged is evidence: nothing deletes it by itself"
    (aside,) = lease.head.set_aside
    assert (aside.step, aside.epoch, aside.manifest) == (10, 1, damaged.manifest)
    assert (aside.found_by, aside.fault) == (1, "a chunk is cut")
    successor = Lease.claim(store, writer("b"), clock=clock, gone="a")
    assert successor.head.set_aside == (aside,)
    successor.drop_set_aside([aside])
    assert successor.head.set_aside == ()


def test_supervisor_and_rank_share_a_claim() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    supervisor = Lease.claim(store, writer("a"), clock=clock)
    rank = Lease.adopt(store, "a", 1, clock=clock)
    rank.commit(manifest(3, 1, clock), Retention(newest=2))
    supervisor.renew()
    assert supervisor.head.commits[0].step == 3
    with pytest.raises(Fenced):
        Lease.adopt(store, "b", 1, clock=clock)


def test_a_damaged_head_is_named() -> None:
    store = ObjectStore.memory()
    store.put(HEAD_KEY, b'{"epoch": 1')
    with pytest.raises(CorruptCheckpoint, match="HEAD is not a valid Head"):
        read_head(store)


def test_every_flipped_byte_of_head_is_noticed() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(5, 1, clock), Retention(newest=2))
    data = store.get(HEAD_KEY).data
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x04
        store.put(HEAD_KEY, bytes(damaged))
        with pytest.raises(CorruptCheckpoint):
            read_head(store)


def test_wrong_bytes_on_the_way_are_read_again() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    Lease.claim(store, writer("a"), clock=clock)
    good = store.get(HEAD_KEY)
    answers = [good._replace(data=good.data[:-2]), good._replace(data=b"x" + good.data[1:]), good]
    store.get = lambda key: answers.pop(0)  # type: ignore[method-assign]
    head = read_head(store)
    assert head is not None
    assert head.writer.id == "a"


class FlakyStore:
    """A store whose conditional writes lose their reply, before or after they happened, as told by `faults`."""

    def __init__(self, faults: list[str]) -> None:
        self.inner = ObjectStore.memory()
        self.faults = faults
        self.url = "memory://"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def swap(self, key: str, data: bytes, token: str) -> str:
        match self.faults.pop(0) if self.faults else "fine":
            case "done, reply lost":  # the client retries and meets its own success
                self.inner.swap(key, data, token)
                raise Conflict(key)
            case "raced":  # another process of the same attempt was faster
                stored = self.inner.get(key)
                self.inner.swap(key, stored.data, stored.token)
                raise Conflict(key)
        return self.inner.swap(key, data, token)


@given(st.lists(st.sampled_from(["done, reply lost", "raced", "fine"]), max_size=12), st.integers(1, 4))
@settings(max_examples=200)
def test_lost_replies_lose_no_commit(faults: list[str], keep: int) -> None:
    store, clock = FlakyStore(list(faults)), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    for step in range(1, 8):
        lease.commit(manifest(step, 1, clock), Retention(newest=keep))
        assert lease.head.commits[0].step == step
    head = read_head(store)
    assert head is not None
    assert [commit.step for commit in head.commits] == list(range(7, 7 - keep, -1))


operations = st.tuples(
    st.sampled_from(["claim", "claim patiently", "commit", "renew", "sleep", "release", "kill"]), st.integers(0, 2)
)


@given(st.lists(operations, max_size=60), st.tuples(*[st.sampled_from(SKEWS_S)] * 3))
@settings(max_examples=300)
def test_any_schedule_of_writers_and_zombies_keeps_the_promises(
    schedule: list[tuple[str, int]], skews_s: tuple[float, ...]
) -> None:
    """A small model: whoever claimed last may commit; nobody else can; the committed step only grows. Each process has
    clocks of its own."""
    store, clocks = ObjectStore.memory(), [own_clock(skew_s) for skew_s in skews_s]
    clock = clocks[0]
    leases: dict[int, Lease] = {}
    owner, committed, dead, claims = None, 0, set(), 0
    fenced: list[bool] = []
    for operation, index in schedule:
        try:
            if operation == "sleep":
                clocks[index].sleep(LEASE_S / 2)
            elif operation == "kill":
                dead.add(index)
            elif operation in ("claim", "claim patiently"):
                claims += 1
                gone = leases[owner].head.writer.id if owner in dead else ""
                wait_s = PATIENCE_S if operation == "claim patiently" else 0.0
                name = writer(f"{index}-{claims}")
                leases[index] = Lease.claim(store, name, clock=clocks[index], gone=gone, wait_s=wait_s)
                owner = index
                dead.discard(index)
            elif index in leases:
                lease = leases[index]
                if operation == "commit":
                    lease.commit(manifest(committed + 1, lease.head.epoch, clock), Retention(newest=2))
                    assert index == owner
                    committed += 1
                elif operation == "renew":
                    lease.renew()
                    assert index == owner
                elif operation == "release":
                    lease.release()
                    assert index == owner
        except RunHeld:
            pass
        except Fenced:
            fenced.append(index == owner)
        head = read_head(store)
        newest = head.commits[0].step if head and head.commits else 0
        assert newest == committed
    assert not any(fenced), "the holder itself was fenced"


def test_the_best_is_kept_until_there_is_a_better_one() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    retention = Retention(newest=1, best=True)
    kept = []
    for step, score in ((1, -0.6), (2, -0.5), (3, -0.7), (4, None), (5, -0.5), (6, -0.9), (7, None)):
        lease.commit(manifest(step, 1, clock), retention)
        if score is not None:
            lease.score(step, Score(metric="m", value=score))
        kept.append([commit.step for commit in lease.head.commits])
    # the newest, and the best of those that were scored when it came
    assert kept == [[1], [2, 1], [3, 2], [4, 2], [5, 2], [6, 5], [7, 5]]
    assert best_of(lease.head.commits) == lease.head.commits[1]


def test_a_score_of_what_is_gone_changes_nothing() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(3, 1, clock), Retention(newest=1))
    lease.score(2, Score(metric="m", value=9.0))
    assert [commit.score for commit in lease.head.commits] == [None]
    assert best_of(lease.head.commits) is None


def test_scores_of_another_metric_do_not_count() -> None:
    """`saves.keep_best` may change between attempts: 0.8 of an accuracy is no better than -0.5 of a loss."""
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    for step, metric, value in ((1, "accuracy", 0.8), (2, "loss", -0.5), (3, "loss", -0.6)):
        lease.commit(manifest(step, 1, clock), Retention(newest=9))
        lease.score(step, Score(metric=metric, value=value))
    best = best_of(lease.head.commits)
    assert best is not None
    assert best.step == 2
    with pytest.raises(ValueError, match="finite"):
        Score(metric="loss", value=float("nan"))


def test_a_lost_head_is_made_anew_from_the_manifests() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    first = Lease.claim(store, writer("a"), clock=clock)
    second = Lease.claim(store, writer("b"), clock=clock, gone="a")
    for step in (10, 20, 30):
        second.commit(manifest(step, 2, clock), Retention(newest=2))
    put_once(store, "manifests/s00000040-e000002-0123456789abcdef.json", b"{}")  # damaged: no checkpoint
    store.delete(HEAD_KEY)
    with pytest.raises(Fenced, match="HEAD is gone"):
        second.commit(manifest(35, 2, clock), Retention(newest=2))
    new = Lease.claim(store, writer("c"), clock=clock)
    assert (new.head.epoch, [commit.step for commit in new.head.commits]) == (3, [35, 30, 20, 10])
    for zombie in (first, second):
        with pytest.raises(Fenced, match="attempt 3"):
            zombie.commit(manifest(50, zombie.head.epoch, clock), Retention(newest=2))
    new.commit(manifest(50, 3, clock), Retention(newest=2))
    assert [commit.step for commit in new.head.commits] == [50, 35]


def test_a_lost_head_loses_no_attempts_number() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(10, 1, clock), Retention(newest=2))
    Diary(store, 7, clock).write("claimed")
    store.delete(HEAD_KEY)
    assert Lease.claim(store, writer("b"), clock=clock).head.epoch == 8


def test_a_new_run_starts_at_nothing() -> None:
    assert find_remains(ObjectStore.memory()) is None


def test_a_step_that_was_committed_unheard_can_be_saved_again() -> None:
    store, clock = ObjectStore.memory(), FakeClock()
    lease = Lease.claim(store, writer("a"), clock=clock)
    lease.commit(manifest(10, 1, clock), Retention(newest=2))
    clock.sleep(1)
    lease.commit(manifest(10, 1, clock), Retention(newest=2))  # another manifest: it names another upload
    assert [commit.step for commit in lease.head.commits] == [10]
    successor = Lease.claim(store, writer("b"), clock=clock, gone="a")
    with pytest.raises(StoreError, match="step 10 is not newer"):
        successor.commit(manifest(10, 2, clock), Retention(newest=2))
