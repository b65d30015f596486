"""HEAD: the one object that commits a checkpoint and fences out every earlier writer.

A writer *claims* the run by swapping HEAD to the next epoch, then *commits* by swapping HEAD to a new manifest. Every
write is a compare-and-swap, so a writer that lost the run (a zombie: preempted, partitioned, slow) fails at its next
swap, whatever it has uploaded. The protocol and its evidence: docs/concepts/commit-and-fence.md.

Safety rests on the swaps alone. The lease only protects a live holder from claimers: a holder changes HEAD every 20 s,
and one whose HEAD was unchanged for a whole lease, on the claimer's own monotonic clock, is dead. No wall clock of
another machine is used for that.

The first half of this module decides (pure functions of the old HEAD and the time), the second half writes.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, Field

from checkpoints.commit.head_recovery import Remains, find_remains
from checkpoints.commit.retention import Commit, Retention, Score
from checkpoints.errors import AlreadyExists, Conflict, Fenced, ObjectMissing, RunHeld, StoreError, UserError
from checkpoints.records.manifest import Key, Manifest, Record, manifest_key, parse, sha256
from checkpoints.records.verified_reads import reread
from checkpoints.records.write_once import put_once
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock
from checkpoints.util.stillness import Unchanged

logger = logging.getLogger(__name__)

HEAD_KEY = "HEAD"
LEASE_S = 60.0
CLAIM_POLL_S = 2.0
MARGIN_S = 2 * CLAIM_POLL_S
"""A renewal may be in flight when the lease ends."""
PATIENCE_S = 2 * LEASE_S
"""Enough to see a whole lease without a change, even if the holder dies during the wait."""
MOST_RACES = 100
"""Consecutive lost races. Two processes of an attempt write HEAD, and rarely a person: more is a fault of the store."""
BURIED_S = 2 * LEASE_S
"""By then a reader that started from the previous HEAD has long read its manifest."""
RELEASED = datetime.fromtimestamp(0, UTC)
"""`lease_until` of a released lease: in the past by every clock, and not a time that a machine could have meant."""


class Writer(Record):
    """Who holds the run."""

    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$", description="unique for each attempt, never used twice")
    host: str
    pid: int
    pid_scope: str = Field(default="", description="where `pid` is valid: kernel boot and pid namespace")


class SetAside(Record):
    """A checkpoint that was damaged when it was read. Kept until a user deletes it with `notus-ckpt gc --damaged`."""

    manifest: Key
    step: int = Field(ge=0)
    epoch: int = Field(ge=1, description="of the attempt that saved it")
    size_bytes: int = Field(default=0, ge=0, description="0 = not known")
    fault: str
    found_by: int = Field(ge=1, description="the attempt that found the damage")
    found_at: AwareDatetime


class Tombstone(Record):
    """A checkpoint that was removed from `commits`; its objects are deleted later (`garbage_collection.expired`)."""

    commit: Commit
    until: AwareDatetime = Field(description="by the writer's clock: for people, and for older versions")


class Head(Record):
    """The content of HEAD."""

    version: Literal[1] = 1
    epoch: int = Field(ge=1, description="fencing token: grows by one with each claim; also the attempt's number")
    writer: Writer
    nonce: str = Field(description="new with each write: distinguishes our own success from another writer's")
    lease_until: AwareDatetime = Field(
        description="by the writer's clock: for people, and for older versions; 1970 = released"
    )
    commits: tuple[Commit, ...] = Field(default=(), description="newest first")
    tombstones: tuple[Tombstone, ...] = ()
    set_aside: tuple[SetAside, ...] = Field(default=(), description="damaged checkpoints, newest first")

    @property
    def released(self) -> bool:
        """Has its holder released the run? Known at once, unlike whether a holder is alive."""
        return self.lease_until <= RELEASED


# --- decisions ------------------------------------------------------------------------------------


def lease_over_s(lease_s: float) -> float:
    """How long HEAD has to be unchanged before its holder is considered dead."""
    return lease_s + MARGIN_S


def next_claim(
    head: Head | None,
    writer: Writer,
    now: datetime,
    lease_s: float,
    gone: str = "",
    *,
    still_s: float = 0.0,
    moved: bool = False,
) -> Head:
    """The HEAD that makes `writer` the holder.

    `gone` is the id of a writer that the caller knows is dead (its processes are reaped, its machine is terminated);
    only then may a lease be broken. `still_s`: for how long the caller has seen HEAD unchanged; `moved`: has it seen it
    change? Raises `RunHeld`, naming the holder, while that may be alive.
    """
    may_live = head is not None and not head.released and head.writer.id not in (gone, writer.id)
    if head is not None and may_live and still_s < lease_over_s(lease_s):
        raise _held(head, lease_s, still_s, moved=moved)
    return Head(
        epoch=1 if head is None else head.epoch + 1,
        writer=writer,
        nonce=uuid.uuid4().hex,
        lease_until=now + timedelta(seconds=lease_s),
        commits=() if head is None else head.commits,
        tombstones=() if head is None else head.tombstones,
        set_aside=() if head is None else head.set_aside,
    )


def _held(head: Head, lease_s: float, still_s: float, *, moved: bool) -> RunHeld:
    over_s = lease_over_s(lease_s)
    if moved:
        state = ", which is alive: it has just changed HEAD"
    elif still_s:
        state = f", whose HEAD has been unchanged for {still_s:.0f} s; it is considered dead after {over_s:.0f} s"
    else:
        state = f", which is alive or died without releasing it: HEAD has to be unchanged for {over_s:.0f} s to tell"
    return RunHeld(
        f"the run is held by {_name(head)}{state}",
        "wait until it is done, stop its launcher (Ctrl-C saves and stops), or choose another --name",
    )


def _name(head: Head) -> str:
    return f"attempt {head.epoch} on {head.writer.host} (pid {head.writer.pid})"


def claim_of_remains(remains: Remains, writer: Writer, now: datetime, lease_s: float) -> Head:
    """The HEAD that makes `writer` the holder of a run whose HEAD is gone, with the checkpoints that were found.

    Some may never have been committed (their writer lost the race for HEAD), or be partly deleted. Neither is a
    problem: a run is deterministic, so a complete checkpoint of a step is the checkpoint of that step, and a restore
    skips incomplete ones. The previous holder is fenced, because this HEAD has another writer.
    """
    commits = tuple(
        _commit_of(found.manifest, found.key, found.sha256, found.manifest.created_at) for found in remains.manifests
    )
    claimed = next_claim(None, writer, now, lease_s)
    epoch = remains.last_epoch + 1
    damaged = tuple(
        SetAside(manifest=bad.key, step=bad.step, epoch=bad.epoch, fault=bad.fault, found_by=epoch, found_at=now)
        for bad in remains.damaged
    )
    return claimed.model_copy(update={"epoch": epoch, "commits": commits, "set_aside": damaged})


def _commit_of(manifest: Manifest, key: str, digest: str, at: datetime) -> Commit:
    return Commit(
        step=manifest.step,
        epoch=manifest.epoch,
        manifest=key,
        sha256=digest,
        size_bytes=manifest.size_bytes,
        committed_at=at,
    )


def next_renewal(head: Head, now: datetime, lease_s: float) -> Head:
    """The same HEAD with the lease extended. Never the same bytes twice: a claimer sees the nonce change."""
    return head.model_copy(update={"nonce": uuid.uuid4().hex, "lease_until": now + timedelta(seconds=lease_s)})


def next_release(head: Head) -> Head:
    """The same HEAD with the lease released."""
    return head.model_copy(update={"nonce": uuid.uuid4().hex, "lease_until": RELEASED})


def next_commit(head: Head, commit: Commit, now: datetime, lease_s: float, retention: Retention) -> Head:
    """The HEAD after `commit`, which comes first; older ones that retention doesn't keep become tombstones.

    Raises `StoreError` for a step that is not newer than the newest: steps never go backwards. A step that this same
    attempt has already committed stays as it is: the reply to its commit was lost, and it was saved again.
    """
    newest = head.commits[0] if head.commits else None
    if newest is not None and (newest.step, newest.epoch) == (commit.step, commit.epoch):
        return next_renewal(head, now, lease_s)
    if head.commits and commit.step <= head.commits[0].step:
        raise StoreError(f"step {commit.step} is not newer than the committed step {head.commits[0].step}")
    commits = (commit, *head.commits)
    until = now + timedelta(seconds=BURIED_S)
    kept = retention.kept(commits)
    buried = tuple(Tombstone(commit=old, until=until) for old in commits if old not in kept)
    return next_renewal(head, now, lease_s).model_copy(
        update={"commits": kept, "tombstones": (*head.tombstones, *buried)}
    )


def next_pin(head: Head, step: int, *, pinned: bool) -> Head:
    """The HEAD in which the checkpoint of `step` is pinned or unpinned. Epoch, holder and lease stay."""
    commits = tuple(c.model_copy(update={"pinned": pinned}) if c.step == step else c for c in head.commits)
    return head.model_copy(update={"nonce": uuid.uuid4().hex, "commits": commits})


def next_score(head: Head, step: int, score: Score) -> Head:
    """The HEAD in which the checkpoint of `step`, if it is kept, has its score."""
    commits = tuple(c.model_copy(update={"score": score}) if c.step == step else c for c in head.commits)
    return head.model_copy(update={"nonce": uuid.uuid4().hex, "commits": commits})


def next_discard(head: Head, damaged: Sequence[tuple[Commit, str]], now: datetime, lease_s: float) -> Head:
    """The HEAD in which checkpoints that failed verification, each with its fault, are set aside.

    Training resumes from an older one. Nothing of them is deleted: the fault may be between us and the bucket, and what
    is left may be useful to the user.
    """
    bad = {commit.manifest for commit, _ in damaged}
    aside = tuple(
        SetAside(
            manifest=commit.manifest,
            step=commit.step,
            epoch=commit.epoch,
            size_bytes=commit.size_bytes,
            fault=fault,
            found_by=head.epoch,
            found_at=now,
        )
        for commit, fault in damaged
    )
    return next_renewal(head, now, lease_s).model_copy(
        update={
            "commits": tuple(commit for commit in head.commits if commit.manifest not in bad),
            "set_aside": (*aside, *head.set_aside),
        }
    )


# --- the writer -----------------------------------------------------------------------------------


def read_head(store: Store) -> Head | None:
    """Return HEAD, or None for a run that was never claimed. Raises `CorruptCheckpoint` if it is damaged."""
    return _read(store)[0]


def _read(store: Store) -> tuple[Head | None, str]:
    """HEAD and its token."""

    def read() -> tuple[Head | None, str]:
        try:
            stored = store.get(HEAD_KEY)
        except ObjectMissing:
            return None, ""
        return parse(Head, stored.data, f"{store.url}/{HEAD_KEY}"), stored.token

    return reread(read)


def pin(store: Store, step: int, *, pinned: bool = True) -> None:
    """Pin or unpin the checkpoint of `step`. Needs no lease: a running writer keeps what it finds in HEAD."""
    for _ in range(MOST_RACES):
        head, token = _read(store)
        if head is None:
            raise ObjectMissing(f"{store.url}/{HEAD_KEY} does not exist")
        if step not in {commit.step for commit in head.commits}:
            raise UserError(f"the checkpoint of step {step} is gone", "see `notus-ckpt ls`")
        wanted = next_pin(head, step, pinned=pinned)
        try:
            store.swap(HEAD_KEY, wanted.to_json(), token)
            return
        except Conflict:
            if _is_ours(store, wanted):
                return
    raise _never_ours(store)


def _never_ours(store: Store) -> StoreError:
    return StoreError(
        f"{store.url}/{HEAD_KEY} could not be written: it had changed each of {MOST_RACES} times",
        "check whether the bucket's conditional writes work: notus-launch doctor",
    )


class _HeadWatch:
    """Polls HEAD, and measures for how long it has been unchanged."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._unchanged = Unchanged(clock)
        self._warned = False
        self.still_s = 0.0

    def look(self) -> tuple[Head | None, str]:
        """HEAD and its token."""
        asked_at = self._clock.monotonic()
        head, token = _read(self._store)
        self.still_s = self._unchanged.seconds(HEAD_KEY, token, asked_at=asked_at)
        return head, token

    @property
    def moved(self) -> bool:
        return self._unchanged.has_changed(HEAD_KEY)

    def wait(self, head: Head | None, limit_s: float) -> None:
        """Sleep until the next poll."""
        if not self._warned and head is not None:
            logger.warning("the run is held by %s: checking for up to %.0f s whether it is alive", _name(head), limit_s)
            self._warned = True
        self._clock.sleep(CLAIM_POLL_S)


def silent_holder(store: Store, clock: Clock | None = None, *, lease_s: float = LEASE_S) -> str:
    """The id of HEAD's writer if it is dead; '' if the run is not held.

    Polls for a whole lease if necessary. Raises `RunHeld` as soon as the holder shows that it is alive.
    """
    clock = clock or SystemClock()
    watch = _HeadWatch(store, clock)
    while True:
        head, _ = watch.look()
        if head is None or head.released:
            return ""
        if watch.moved:
            raise _held(head, lease_s, watch.still_s, moved=True)
        if watch.still_s >= lease_over_s(lease_s):
            return head.writer.id
        watch.wait(head, lease_over_s(lease_s))


class Lease:
    """The right to commit, held by one writer of one run. Not thread-safe.

    Its methods raise `Fenced` as soon as HEAD belongs to another writer; nothing can be committed after that.
    """

    def __init__(self, store: Store, head: Head, clock: Clock, lease_s: float) -> None:
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self.unchanged = Unchanged(clock)
        """How long this writer has seen others' records, and its own tombstones, unchanged."""
        self._saw(head)

    @property
    def clock(self) -> Clock:
        return self._clock

    @classmethod
    def claim(
        cls,
        store: Store,
        writer: Writer,
        *,
        gone: str = "",
        wait_s: float = 0.0,
        patient: bool = True,
        clock: Clock | None = None,
        lease_s: float = LEASE_S,
    ) -> Lease:
        """Become the writer of the run.

        Claims at once if the run isn't held, or `gone` holds it. Otherwise polls HEAD for up to `wait_s` and claims the
        run as soon as HEAD has been unchanged for a whole lease (`lease_over_s`), or was released. Raises `RunHeld`
        after that; without `patient` as soon as the holder shows that it is alive. If HEAD is gone and there are
        checkpoints, HEAD is rebuilt from them.
        """
        clock = clock or SystemClock()
        patience_ends, lost = clock.monotonic() + wait_s, 0
        watch = _HeadWatch(store, clock)
        while True:
            old, token = watch.look()
            remains = find_remains(store) if old is None else None
            try:
                if remains is not None:
                    head = claim_of_remains(remains, writer, clock.now(), lease_s)
                else:
                    now, still_s = clock.now(), watch.still_s
                    head = next_claim(old, writer, now, lease_s, gone, still_s=still_s, moved=watch.moved)
            except RunHeld:
                if clock.monotonic() >= patience_ends or (watch.moved and not patient):
                    raise
                watch.wait(old, wait_s)
                continue
            try:
                if old is None:
                    store.create(HEAD_KEY, head.to_json())
                else:
                    store.swap(HEAD_KEY, head.to_json(), token)
            except (AlreadyExists, Conflict):
                if not _is_ours(store, head):
                    lost += 1
                    if lost >= MOST_RACES:
                        raise _never_ours(store) from None
                    continue  # another claimer was faster: poll again, and most likely raise `RunHeld`
            if remains is not None:
                logger.warning("%s had no HEAD: rebuilt it with %d checkpoints", store.url, len(head.commits))
            return cls(store, head, clock, lease_s)

    @classmethod
    def adopt(
        cls, store: Store, writer_id: str, epoch: int, *, clock: Clock | None = None, lease_s: float = LEASE_S
    ) -> Lease:
        """Use the claim of the attempt's supervisor in another process; raises `Fenced` if it is lost."""
        head, _ = _current(store, writer_id, epoch)
        return cls(store, head, clock or SystemClock(), lease_s)

    def check(self) -> None:
        """Raise `Fenced` if the run belongs to another writer; changes nothing."""
        _current(self._store, self.head.writer.id, self.head.epoch)

    def renew(self) -> None:
        """Extend the lease."""
        self._update(lambda head: next_renewal(head, self._clock.now(), self._lease_s))

    def release(self) -> None:
        """Release the lease, so that a successor need not wait."""
        self._update(next_release)

    def commit(self, manifest: Manifest, retention: Retention) -> Commit:
        """Write the manifest and make it the newest checkpoint.

        When this returns, the checkpoint is durable and visible to every reader. When it raises, the previous one is
        still the newest.
        """
        data = manifest.to_json()
        digest = sha256(data)
        key = manifest_key(manifest.step, manifest.epoch, digest)
        put_once(self._store, key, data)
        commit = _commit_of(manifest, key, digest, self._clock.now())
        self._update(lambda head: next_commit(head, commit, self._clock.now(), self._lease_s, retention))
        return commit

    def score(self, step: int, score: Score) -> None:
        """Record the evaluation result of the checkpoint of `step`; does nothing if it is no longer kept."""
        self._update(lambda head: next_score(head, step, score))

    def discard(self, damaged: Sequence[tuple[Commit, str]]) -> None:
        """Set aside checkpoints that failed verification, each with its fault.

        Call it only after all ranks have agreed on an older one.
        """
        self._update(lambda head: next_discard(head, damaged, self._clock.now(), self._lease_s))

    def drop_tombstones(self, dropped: tuple[Tombstone, ...]) -> None:
        """Forget tombstones whose objects are deleted."""
        self._update(
            lambda head: head.model_copy(
                update={
                    "nonce": uuid.uuid4().hex,
                    "tombstones": tuple(stone for stone in head.tombstones if stone not in dropped),
                }
            )
        )

    def drop_set_aside(self, dropped: Sequence[SetAside]) -> None:
        """Forget damaged checkpoints whose objects are deleted."""
        self._update(
            lambda head: head.model_copy(
                update={
                    "nonce": uuid.uuid4().hex,
                    "set_aside": tuple(each for each in head.set_aside if each not in dropped),
                }
            )
        )

    def _update(self, change: Callable[[Head], Head]) -> None:
        """Swap HEAD to `change(HEAD)`. Raises `Fenced` for a newer epoch.

        Two processes of one attempt write here (lease, commit): a race lost between them is retried.
        """
        for _ in range(MOST_RACES):
            current, token = _current(self._store, self.head.writer.id, self.head.epoch)
            wanted = change(current)
            try:
                self._store.swap(HEAD_KEY, wanted.to_json(), token)
            except (Conflict, ObjectMissing):
                if not _is_ours(self._store, wanted):
                    continue
            self._saw(wanted)
            return
        raise _never_ours(self._store)

    def _saw(self, head: Head) -> None:
        """Remember HEAD; the age of a tombstone counts from when it is first seen."""
        self.head = head
        for stone in head.tombstones:
            self.buried_s(stone)

    def buried_s(self, stone: Tombstone) -> float:
        """For how many seconds this writer has seen `stone`."""
        return self.unchanged.seconds(f"tombstone of {stone.commit.manifest}")


def _current(store: Store, writer_id: str, epoch: int) -> tuple[Head, str]:
    """HEAD and its token, while it belongs to this writer; else raises `Fenced`."""
    head, token = _read(store)
    if head is None or (head.writer.id, head.epoch) != (writer_id, epoch):
        raise _fenced(head, epoch)
    return head, token


def _is_ours(store: Store, wanted: Head) -> bool:
    """After a lost reply: is HEAD our own write?"""
    head = read_head(store)
    return head is not None and head.nonce == wanted.nonce


def _fenced(head: Head | None, epoch: int) -> Fenced:
    if head is None:
        return Fenced("HEAD is gone: the run was deleted while this attempt was running")
    return Fenced(
        f"attempt {head.epoch} on {head.writer.host} has taken over the run "
        f"from attempt {epoch}, which can no longer commit and stops",
        "nothing committed is lost; see `notus-launch status`",
    )
