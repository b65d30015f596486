"""One rank's checkpoints: its trainer's state into the keeper's hands at a save, and back at the start."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
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
from trainer.checkpointing.distributed_saver import Keeper
from trainer.checkpointing.prefetch import Prefetch
from trainer.checkpointing.save_interval import auto_interval_minutes, hours_to_preemption
from trainer.config.fingerprint import check_fingerprint
from trainer.config.recipe import Recipe
from trainer.config.trl_config import Device
from trainer.devices.collectives import from_rank_0
from trainer.devices.determinism import not_reproducible
from trainer.devices.device_copy import copy_scope, pinning
from trainer.runtime.attempt_dir import Phase, Scratch
from trainer.runtime.stop_flag import StopRequest

if TYPE_CHECKING:
    from trainer.checkpointing.deepspeed_engine import BucketEngine
    from trainer.method import MethodTrainer
    from trainer.metrics.step_log import StepRecord

logger = logging.getLogger(__name__)

FIRST_SAVE_MINUTES = 2.0


class Checkpointing:
    """Saves and restores. Everything but `interval_minutes`, `prepare` and `commits` is collective."""

    def __init__(
        self, recipe: Recipe, *, run: str, store: Store, head: Head, scratch: Scratch, stop: StopRequest, device: Device
    ) -> None:
        """Starts this rank's uploader, before its memory is needed for a model."""
        self._recipe, self._store, self._head = recipe, store, head
        self._scratch, self._stop = scratch, stop
        setup = Setup(
            bucket=os.environ["NOTUS_BUCKET"],
            run=run,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            writer_id=head.writer.id,
            epoch=head.epoch,
            retention=Retention(
                newest=recipe.saves.keep + 1,  # and one as the fallback
                every_steps=recipe.saves.keep_every_steps,
                best=recipe.saves.keep_best is not None,
            ),
        )
        self._memory = RunMemory(store.url)
        self._memory.hold(head.writer.id)
        buffer = SharedBuffer(
            self._memory.snapshot(head.writer.id, setup.rank),
            fallback=self._memory.fallback(head.writer.id, setup.rank),
            pin=pinning(device),
        )
        self.keeper = Keeper(store, head, setup, Saver(setup, buffer, copy_scope(device)))

    def attach(
        self,
        trainer: MethodTrainer,
        engine: BucketEngine | None,
        record: StepRecord,
        *,
        fingerprint: dict[str, Any],
        dataset: str,
        announce: Callable[[Phase], None],
    ) -> None:
        """Whose state it is. `engine` under ZeRO-3; `dataset`: what identifies the rows."""
        self._trainer, self._engine, self._record = trainer, engine, record
        self._fingerprint, self._dataset, self._announce = fingerprint, dataset, announce

    # --- back at the start ------------------------------------------------------------------------

    def restore(self, prefetch: Prefetch, shared_prefetch: Prefetch) -> str | None:
        """Stage the newest good checkpoint for the Trainer; returns the folder, or None to start from the base.

        `prefetch` of this rank's shard; `shared_prefetch`: of the one that has the weights. Raises `NotExact`.
        """
        started = time.monotonic()
        shard = self.keeper.restore(prefetch)
        if dist.get_rank() == 0:  # every rank has read what it could
            self._memory.remove_dead()
        if shard is None:
            logger.info("no checkpoint yet: starting from the base model")
            return None
        manifest = shard.manifest
        not_exact = check_fingerprint(manifest.fingerprint, self._fingerprint) + not_reproducible(self._fingerprint)
        commit = next(commit for commit in self._head.commits if commit.step == manifest.step)
        trees = shard.trees()
        if shared_prefetch is not prefetch:
            trees = {**shared_prefetch.load(commit).trees(), **trees}
        trees["trainer"] = from_rank_0(trees.get("trainer"))  # rank 0 saves it for all
        states.check_cursor(self._trainer, trees["cursor"], self._dataset)
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
            Diary(self._store, self._head.epoch).write(resumed)
        folder = self._scratch.work / f"resume-r{dist.get_rank()}"
        return str(states.stage(trees, self._engine, folder))

    def finish_restore(self) -> None:
        """What the Trainer doesn't restore by itself, before its first step."""
        if (resumed := self._trainer.resume) is None:
            return
        states.restore_counters(self._trainer, resumed["counters"])
        if "recomputed" in resumed:
            states.check_recomputed(states.computed_weights(self._trainer), resumed["recomputed"])
        self._trainer.args.eval_on_start = resumed["cursor"]["evaluation_due"]

    def release_restored(self) -> None:
        """The restored state has been copied to where it belongs: 7 GB a rank for a 7B model."""
        self._trainer.resume = None
        if self._engine is not None:
            self._engine.restored = {}

    # --- saving -----------------------------------------------------------------------------------

    def prepare(self, *, evaluation_due: bool) -> None:
        """Get the memory that a save needs, after the first step: now the optimizer has its state."""
        self.keeper.saver.prepare(self._captured(evaluation_due=evaluation_due))

    def save(self, reason: str, *, evaluation_due: bool) -> None:
        """Start a save; wait for it only where nothing can be gained by going on."""
        step = self._trainer.state.global_step
        if self.keeper.saver.newest_step == step:  # saved or on its way, the restored step too: nothing to add
            self.keeper.settle(tolerant=True)
            if self.keeper.saver.newest_step == step:
                return
        if reason == "stop" and not self._emergency():
            return
        self.keeper.settle(tolerant=True)  # the one before
        self._announce("saving")
        started = time.monotonic()
        trees = self._captured(evaluation_due=evaluation_due)
        self.keeper.saver.count_stall(time.monotonic() - started)
        lines = self._record.lines
        if self.keeper.saver.save(step, trees, reason=reason, fingerprint=self._fingerprint, metrics=lines):
            self._record.taken()
        if reason in ("stop", "final"):
            self.keeper.settle()
        self._announce("training")

    def interval_minutes(self) -> float | None:
        """By the clock: what the recipe says, or what the saves so far suggest; None = not by the clock."""
        saves = self._recipe.saves
        if not saves.auto:
            return saves.every_minutes
        costs = self.keeper.saver.costs
        if costs is None:
            return FIRST_SAVE_MINUTES  # soon: it is also the measurement
        return auto_interval_minutes(
            stall_s=costs.stall_s,
            upload_s=costs.upload_s,
            mean_time_to_preemption_s=hours_to_preemption(os.environ) * 3600,
        )

    def commits(self) -> Sequence[Commit]:
        """What is in the bucket now; a save on its way may still come."""
        try:
            head = read_head(self._store)
        except NotusError:
            return self._head.commits
        return head.commits if head else ()

    def _captured(self, *, evaluation_due: bool) -> dict[str, Any]:
        """The state as trees of tensors that are not copied yet."""
        return states.capture(
            self._trainer, self._engine, self._scratch.work / "engine", self._dataset, evaluation_due=evaluation_due
        )

    def _emergency(self) -> bool:
        """Decide together what fits into the time that is left; True = save the newest step."""
        while (choice := self.keeper.choose(self._stop.seconds_left())) == "finish, then see":
            self.keeper.settle(tolerant=True)  # the first save: from its end on there are figures
        logger.info("stopping: %s", choice)
        if choice in ("save now", "leave"):
            self.keeper.give_up()
        return choice in ("finish, then save", "save now")
