"""The keeper of a rank's state: capture, upload, commit; and back.

A save is one collective: every rank captures and uploads its shard, rank 0 gathers the acknowledgements and commits.
If one rank fails, none commits, and the previous checkpoint stays the newest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch.distributed as dist

from checkpoints.errors import NotusError
from checkpoints.events import Diary
from checkpoints.head import Head, Lease
from checkpoints.manifest import Manifest, ShardRef
from checkpoints.restore import RestoredShard, newest_good
from checkpoints.retention import collect
from checkpoints.run import write_metrics
from checkpoints.snapshot import HostBuffer, Snapshot
from checkpoints.store import Store
from checkpoints.upload import attempt_prefix, upload_shard
from trainer.prefetch import Prefetch

logger = logging.getLogger(__name__)


class Ack(NamedTuple):
    """What a rank tells the others about its part of a save."""

    shard: ShardRef | None
    error: NotusError | None


class Keeper:
    """Saves and restores this rank's state. All methods but the constructor are collective calls."""

    def __init__(self, store: Store, head: Head, run: str, *, keep: int) -> None:
        self._store = store
        self._run = run
        self._keep = keep
        self._head = head
        self._buffer = HostBuffer()
        self._rank = dist.get_rank()
        self._world_size = dist.get_world_size()
        self._lease = Lease.adopt(store, head.writer.id, head.epoch) if self._rank == 0 else None
        self._diary = Diary(store, head.epoch)
        self._newest = -1

    @property
    def attempt(self) -> int:
        return self._head.epoch

    def restore(self, prefetch: Prefetch) -> RestoredShard | None:
        """The newest checkpoint that is good on every rank, or None for a run without one.

        Damaged ones are named in the log and in the diary, and leave HEAD.
        """
        started = time.monotonic()
        shard, damaged = newest_good(self._head.commits, prefetch.load, self._gather_faults)
        for commit, fault in damaged:
            logger.warning("checkpoint of step %d is damaged and passed over: %s", commit.step, fault)
        if self._rank == 0 and self._lease is not None and damaged:
            for commit, fault in damaged:
                self._diary.write("damaged", step=commit.step, manifest=commit.manifest, fault=fault)
            self._lease.discard([commit for commit, _ in damaged])
        if shard is None:
            return None
        self._newest = shard.manifest.step
        if self._rank == 0:
            seconds = round(time.monotonic() - started, 3)
            self._diary.write(
                "resumed", step=shard.manifest.step, size_bytes=shard.manifest.size_bytes, waited_s=seconds
            )
        return shard

    def save(
        self,
        step: int,
        trees: dict[str, Any],
        *,
        reason: str,
        fingerprint: dict[str, Any],
        metrics: Sequence[dict[str, Any]],
    ) -> None:
        """Make the state of `step` durable and commit it. On return it is what a successor resumes from.

        Saving a step that is committed already does nothing (an epoch's end that is also an interval's).

        Raises:
            Fenced: a successor has taken over.
            NotusError: a rank could not upload; the same error on every rank.
        """
        if step <= self._newest:
            return
        started = time.monotonic()
        prefix = self._broadcast(attempt_prefix(self._head.epoch, step))
        acks = self._gather(self._upload(prefix, trees, metrics))
        for ack in acks:
            if ack.error is not None:
                raise ack.error
        manifest = Manifest(
            run=self._run,
            step=step,
            epoch=self._head.epoch,
            world_size=self._world_size,
            created_at=datetime.now(UTC),
            reason=reason,
            fingerprint=fingerprint,
            shards=tuple(ack.shard for ack in acks if ack.shard is not None),
        )
        error = self._broadcast(self._commit(manifest))
        if error is not None:
            raise error
        self._newest = step
        if self._rank == 0:
            seconds = round(time.monotonic() - started, 3)
            logger.info("saved step %d (%s) in %.2f s", step, reason, seconds)
            self._diary.write("saved", step=step, reason=reason, size_bytes=manifest.size_bytes, stalled_s=seconds)

    def _upload(self, prefix: str, trees: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> Ack:
        try:
            snapshot = Snapshot.take(trees, self._buffer)
            write_metrics(self._store, self._head.epoch, self._rank, list(metrics))
            return Ack(upload_shard(self._store, prefix, self._rank, snapshot), None)
        except NotusError as error:
            return Ack(None, error)

    def _commit(self, manifest: Manifest) -> NotusError | None:
        if self._lease is None:
            return None
        try:
            self._lease.commit(manifest, keep=self._keep + 1)
            collect(self._store, self._lease, datetime.now(UTC))
        except NotusError as error:
            return error
        return None

    def _gather_faults(self, fault: str) -> list[str]:
        return [f"rank {rank}: {text}" for rank, text in enumerate(self._gather(fault)) if text]

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self._world_size
        dist.all_gather_object(values, value)
        return values

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
