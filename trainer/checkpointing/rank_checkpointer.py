"""A rank's checkpoints: passes its trainer's state to the saver, and restores it at the start."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from checkpoints.commit.head import Head, read_head
from checkpoints.commit.retention import Commit, Retention
from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Resumed
from checkpoints.run_log.event_log import Diary
from checkpoints.save.saver import Saver
from checkpoints.save.uploader_messages import Setup
from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.storage.base import Store
from trainer.checkpointing import training_state as states
from trainer.checkpointing.distributed_saver import DistributedSaver
from trainer.checkpointing.prefetch import Prefetch
from trainer.checkpointing.save_interval import auto_interval_minutes, hours_to_preemption
from trainer.config.fingerprint import check_fingerprint
from trainer.config.recipe import Saves
from trainer.config.trl_config import Device
from trainer.devices.collectives import from_rank_0
from trainer.devices.determinism import not_reproducible
from trainer.devices.device_copy import copy_scope, pinning
from trainer.runtime.attempt_dir import Scratch
from trainer.runtime.stop_flag import StopRequest

if TYPE_CHECKING:
    from trainer.checkpointing.deepspeed_engine import BucketEngine
    from trainer.method import MethodTrainer
    from trainer.metrics.step_log import StepRecord

logger = logging.getLogger(__name__)

FIRST_SAVE_MINUTES = 2.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an attempt has claimed, and where it runs: the same on every rank."""

    run: str
    store: Store
    """The run's own part of the bucket, fenced."""
    head: Head
    """HEAD at the time of the claim."""
    scratch: Scratch
    stop: StopRequest

    @property
    def diary(self) -> Diary:
        """The run's diary, for this attempt to write to."""
        return Diary(self.store, self.head.epoch)


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """The objects whose state a checkpoint holds."""

    trainer: MethodTrainer
    engine: BucketEngine | None
    """Only under ZeRO-3."""
    record: StepRecord
    fingerprint: dict[str, Any]
    dataset: str
    """Identifies the training rows."""


def start_saver(claim: Claim, saves: Saves, device: Device) -> DistributedSaver:
    """Start this rank's uploader, before its memory is needed for a model."""
    setup = Setup(
        bucket=os.environ["NOTUS_BUCKET"],
        run=claim.run,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        writer_id=claim.head.writer.id,
        epoch=claim.head.epoch,
        retention=Retention(
            newest=saves.keep + 1,  # plus one as the fallback
            every_steps=saves.keep_every_steps,
            best=saves.keep_best is not None,
        ),
    )
    memory = RunMemory(claim.store.url)
    memory.hold(setup.writer_id)
    buffer = SharedBuffer(
        memory.snapshot(setup.writer_id, setup.rank),
        fallback=memory.fallback(setup.writer_id, setup.rank),
        pin=pinning(device),
    )
    return DistributedSaver(claim.store, claim.head, setup, Saver(setup, buffer, copy_scope(device)))


class RankCheckpointer:
    """Saves and restores. Everything but `interval_minutes`, `prepare` and `commits` is collective."""

    def __init__(self, claim: Claim, saves: Saves, saver: DistributedSaver, state: SavedState) -> None:
        self._claim, self._saves, self.saver = claim, saves, saver
        self._state, self._trainer = state, state.trainer

    # --- restoring --------------------------------------------------------------------------------

    def restore(self, prefetch: Prefetch, shared_prefetch: Prefetch) -> str | None:
        """Stage the newest good checkpoint for the Trainer; returns the folder, or None to start from the base model.

        `prefetch`: this rank's shard; `shared_prefetch`: the shard that has the weights. Raises `NotExact`.
        """
        started = time.monotonic()
        shard = self.saver.restore(prefetch)
        if dist.get_rank() == 0:  # all ranks have finished reading
            RunMemory(self._claim.store.url).remove_dead()
        if shard is None:
            logger.info("no checkpoint yet: starting from the base model")
            return None
        manifest = shard.manifest
        mine = self._state.fingerprint
        not_exact = check_fingerprint(manifest.fingerprint, mine) + not_reproducible(mine)
        commit = next(commit for commit in self._claim.head.commits if commit.step == manifest.step)
        trees = shard.trees()
        if shared_prefetch is not prefetch:
            trees = {**shared_prefetch.load(commit).trees(), **trees}
        trees["trainer"] = from_rank_0(trees.get("trainer"))  # rank 0 saves it for all
        states.check_cursor(self._trainer, trees["cursor"], self._state.dataset)
        if manifest.world_size != dist.get_world_size():
            states.adapt_to_world_size(trees, manifest.world_size)
        self._trainer.resume = trees
        logger.info("resuming from step %d, saved by attempt %d", manifest.step, manifest.epoch)
        if dist.get_rank() == 0:
            for reason in not_exact:
                logger.warning("not exact from here on: %s", reason)
            waited_s = round(time.monotonic() - started, 3)
            resumed = Resumed(
                step=manifest.step, size_bytes=manifest.size_bytes, waited_s=waited_s, not_exact=tuple(not_exact)
            )
            self._claim.diary.write(resumed)
        folder = self._claim.scratch.work / f"resume-r{dist.get_rank()}"
        return str(states.stage(trees, self._state.engine, folder))

    def finish_restore(self) -> None:
        """Restore what the Trainer doesn't restore by itself, before its first step."""
        if (resumed := self._trainer.resume) is None:
            return
        states.restore_counters(self._trainer, resumed["counters"])
        if "recomputed" in resumed:
            states.check_recomputed(states.computed_weights(self._trainer), resumed["recomputed"])
        self._trainer.args.eval_on_start = resumed["cursor"]["evaluation_due"]

    def release_restored(self) -> None:
        """Free the restored state once it has been copied: 7 GB per rank for a 7B model."""
        self._trainer.resume = None
        if self._state.engine is not None:
            self._state.engine.restored = {}

    # --- saving -----------------------------------------------------------------------------------

    def prepare(self, *, evaluation_due: bool) -> None:
        """Allocate the memory that a save needs, after the first step, when the optimizer has its state."""
        self.saver.local.prepare(self._captured(evaluation_due=evaluation_due))

    def save(self, reason: str, *, evaluation_due: bool) -> None:
        """Start a save; wait for it only at a stop or at the end."""
        step = self._trainer.state.global_step
        if self.saver.local.newest_step == step:  # saved, in flight or just restored: nothing to add
            self.saver.settle(tolerant=True)
            if self.saver.local.newest_step == step:
                return
        if reason == "stop" and not self._emergency():
            return
        self.saver.settle(tolerant=True)  # the previous one
        self._trainer.hooks.announce("saving")
        started = time.monotonic()
        trees = self._captured(evaluation_due=evaluation_due)
        self.saver.local.count_stall(time.monotonic() - started)
        lines = self._state.record.lines
        if self.saver.local.save(step, trees, reason=reason, fingerprint=self._state.fingerprint, metrics=lines):
            self._state.record.taken()
        if reason in ("stop", "final"):
            self.saver.settle()
        self._trainer.hooks.announce("training")

    def interval_minutes(self) -> float | None:
        """Minutes between saves, from the recipe or from the cost of saves so far; None = don't save by the clock."""
        saves = self._saves
        if not saves.auto:
            return saves.every_minutes
        costs = self.saver.local.costs
        if costs is None:
            return FIRST_SAVE_MINUTES  # soon, because it is also the first measurement
        return auto_interval_minutes(
            stall_s=costs.stall_s,
            upload_s=costs.upload_s,
            mean_time_to_preemption_s=hours_to_preemption(os.environ) * 3600,
        )

    def commits(self) -> Sequence[Commit]:
        """The commits in the bucket now; a save in flight may follow."""
        try:
            head = read_head(self._claim.store)
        except NotusError:
            return self._claim.head.commits
        return head.commits if head else ()

    def _captured(self, *, evaluation_due: bool) -> dict[str, Any]:
        """The state as trees of tensors, not copied yet."""
        return states.capture(
            self._trainer,
            self._state.engine,
            self._claim.scratch.work / "engine",
            self._state.dataset,
            evaluation_due=evaluation_due,
        )

    def _emergency(self) -> bool:
        """Decide together what fits into the remaining time; True = save the newest step."""
        while (choice := self.saver.choose(self._claim.stop.seconds_left())) == "finish, then see":
            self.saver.settle(tolerant=True)  # the first save: once it is done there are measurements
        logger.info("stopping: %s", choice)
        if choice in ("save now", "leave"):
            self.saver.give_up()
        return choice in ("finish, then save", "save now")
