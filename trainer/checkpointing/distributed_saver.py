"""Saves with several ranks: a `Saver` on every rank, and what the ranks have to agree on.

Collective calls: `restore`, `settle`, `resolve_failure`, `give_up`, `choose`. What a rank does alone is in
`DistributedSaver.local`.
"""

from __future__ import annotations

import logging
import math
import time
from typing import NamedTuple

from checkpoints.commit.head import Head, Lease
from checkpoints.commit.retention import Score
from checkpoints.errors import Fenced, NotusError, StoreError, UserError
from checkpoints.restore.shard_restore import Restored, newest_good
from checkpoints.run_log.event_kinds import DamageFound
from checkpoints.run_log.event_log import Diary
from checkpoints.save.saver import Saver
from checkpoints.save.uploader_messages import Done, Setup
from checkpoints.storage.base import Store
from trainer.checkpointing.preemption_save import Choice, Needed, Unknown, choose, needed
from trainer.checkpointing.prefetch import Prefetch
from trainer.devices.collectives import gather

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 5
"""How many consecutive saves may fail before the run does: training that can't be saved isn't worth its cost."""
SETTLE_POLL_S = 0.01


class Pending(NamedTuple):
    """The state of a rank's save in flight. Not yet agreed between ranks."""

    busy: bool
    failed: bool


class DistributedSaver:
    """Restores, and decides about saves together with the other ranks."""

    def __init__(self, store: Store, head: Head, setup: Setup, saver: Saver) -> None:
        self._store = store
        self._head = head
        self._setup = setup
        self._failures_in_a_row = 0
        self._commits_seen = 0
        self.local = saver
        """This rank's own."""

    def restore(self, prefetch: Prefetch) -> Restored | None:
        """The newest checkpoint that is good on every rank, or None for a run without one.

        Damaged ones are reported in the log and in the diary, and set aside: HEAD keeps them, but not as checkpoints.
        """
        shard, damaged = newest_good(self._head.commits, prefetch.load, self._gather_faults)
        for commit, fault in damaged:
            logger.warning("skipped the checkpoint of step %d, which is damaged: %s", commit.step, fault)
        if self._setup.rank == 0:
            diary = Diary(self._store, self._head.epoch)
            for commit, fault in damaged:
                diary.write(DamageFound(step=commit.step, manifest=commit.manifest, fault=fault))
            if damaged:
                Lease.adopt(self._store, self._head.writer.id, self._head.epoch).discard(damaged)
        if shard is not None:
            self.local.newest_step = shard.manifest.step
        return shard

    def poll(self) -> Pending:
        """Read the results of this rank's uploader, without waiting."""
        busy = self.local.poll()
        return Pending(busy, failed=self.local.failure is not None)

    def settle(self, *, tolerant: bool = False) -> None:
        """Wait for the save in flight and agree on its result.

        `tolerant`: a failed save is only logged, up to `MAX_FAILED_SAVES` in a row; the previous checkpoint is still
        the newest.

        Raises:
            Fenced, UserError: on every rank.
            StoreError: the save failed.
        """
        self.local.wait_copied()
        started = time.monotonic()
        # Together and in small steps: rank 0 commits only when all have uploaded, so it has to learn of a rank's
        # failure while it still waits.
        while True:
            pending = gather(self.poll())
            if any(rank.failed for rank in pending) or not any(rank.busy for rank in pending):
                break
            time.sleep(SETTLE_POLL_S)
        self.local.count_stall(time.monotonic() - started)
        if tolerant:
            self.resolve_failure()
        elif (error := self._agree_on_failure()) is not None:
            raise error

    def resolve_failure(self) -> None:
        """If some rank's save has failed, abandon it on all ranks and continue training.

        Raises:
            Fenced, UserError: on every rank.
            StoreError: too many saves have failed in a row.
        """
        self.local.wait_copied()
        error = self._agree_on_failure()
        if error is None:
            return
        if isinstance(error, Fenced | UserError) or self._failures_in_a_row >= MAX_FAILED_SAVES:
            raise error
        logger.warning("a save failed, training continues: %s", error.message)

    def give_up(self) -> None:
        """Abandon the save in flight on every rank: there is no time for it, or some rank has failed."""
        self.local.give_up()
        # Also on ranks that had uploaded their part: all must behave the same when this step is saved again.
        self.local.newest_step = -1

    def choose(self, seconds_left: float | None) -> Choice:
        """Agree on what to do in the remaining time."""
        mine = self._needed()
        ranks: list[tuple[float | None, Needed | Unknown]] = gather((seconds_left, mine))
        left = [seconds for seconds, _ in ranks if seconds is not None]
        return choose(min(left) if left else None, [rank for _, rank in ranks])

    def _needed(self) -> Needed | Unknown:
        """How long this rank needs."""
        saver = self.local
        busy, rate, size_bytes = saver.poll(), saver.bytes_per_second(), saver.size_bytes
        if rate is None or size_bytes is None:
            return Unknown(busy)
        return needed(
            copy_s=saver.copy_s,
            snapshot_bytes=size_bytes,
            busy=busy,
            in_flight_bytes=saver.in_flight_bytes(),
            bytes_per_second=rate,
        )

    def score(self, step: int, metric: str, metrics: dict[str, float]) -> None:
        """Record the score of the checkpoint of `step` in HEAD. Raises `Fenced` on rank 0."""
        if self._setup.rank != 0:
            return
        if metric not in metrics:
            raise UserError(
                f"the evaluation has no {metric!r}", f"saves.keep_best: choose one of {', '.join(sorted(metrics))}"
            )
        value = -metrics[metric] if metric.endswith("loss") else metrics[metric]
        if not math.isfinite(value):
            logger.warning("the evaluation of step %d gave %s = %s: not a score", step, metric, metrics[metric])
            return
        try:
            Lease.adopt(self._store, self._head.writer.id, self._head.epoch).score(
                step, Score(metric=metric, value=value)
            )
        except StoreError as error:
            logger.warning("could not record the score of step %d: %s", step, error.message)

    def _agree_on_failure(self) -> NotusError | None:
        """Gather all ranks' failures; leave no rank waiting; return the worst, the same on every rank."""
        results: list[tuple[Done | None, int]] = gather((self.local.failure, self.local.done_count))
        commits = results[0][1]  # on rank 0 done means committed
        if commits > self._commits_seen:  # only this resets the count of failures
            self._commits_seen, self._failures_in_a_row = commits, 0
        failures = [failure for failure, _ in results if failure is not None]
        if not failures:
            return None
        self.give_up()
        self._failures_in_a_row += 1
        order = ("fenced", "user_error", "failed", "abandoned")
        return _as_error(min(failures, key=lambda failure: order.index(failure.error)))

    def _gather_faults(self, fault: str) -> list[str]:
        return [f"rank {rank}: {text}" for rank, text in enumerate(gather(fault)) if text]


def _as_error(done: Done) -> NotusError:
    try:
        done.raise_error()
    except NotusError as error:
        return error
    return StoreError("a save failed for an unknown reason")
