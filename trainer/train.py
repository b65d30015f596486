"""The training itself, on every rank: build, restore, train, save, export."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.distributed as dist
from torch.backends.cpu import get_cpu_capability as cpu_capability
from transformers import AutoTokenizer, TrainerState
from transformers.utils import is_flash_attn_2_available
from trl import DPOConfig

from checkpoints.errors import NotusError, UserError
from checkpoints.events import Diary
from checkpoints.head import Commit, Head, Retention, read_head
from checkpoints.saver import Saver
from checkpoints.shm import RunMemory, SharedBuffer
from checkpoints.store import Store
from checkpoints.uploader import Setup
from trainer import state as states
from trainer.base import identify_base
from trainer.batching import Batch
from trainer.builtin_model import base_model, make_base_model
from trainer.card import public_base
from trainer.collective import from_rank_0
from trainer.curves import Curve, Curves, TensorBoardCurve, WandbCurve, first_step_shown
from trainer.data import Pairs, prepare
from trainer.determinism import make_deterministic, not_reproducible
from trainer.device_copy import copy_scope, pinning
from trainer.dpo import NotusDPOTrainer
from trainer.errors import HardwareError
from trainer.export import export_model, keep_model_files
from trainer.fingerprint import check_fingerprint, cpu_device, fingerprint
from trainer.history import History, Row, numbers
from trainer.hub import push_model
from trainer.interval import ASSUMED_HOURS_TO_PREEMPTION, HOURS_TO_PREEMPTION, auto_interval_minutes
from trainer.keeper import Keeper
from trainer.loading import blaming
from trainer.meter import Meter, Speedometer, speedometer
from trainer.ops_cache import OpsCache
from trainer.optimizer import check_optimizer
from trainer.prefetch import Prefetch
from trainer.recipe import Recipe
from trainer.record import StepRecord
from trainer.reference import Ahead, ReferenceCache, reference_key
from trainer.rhythm import Rhythm
from trainer.saving import what_is_left
from trainer.scratch import Outcome, Phase, Progress, Scratch
from trainer.settings import Device, choose_attention, dpo_arguments
from trainer.shapes import shape_from_config
from trainer.stop import StopRequest
from trainer.token_cache import TokenCache, tokens_key
from trainer.tracking import tracker_links

logger = logging.getLogger(__name__)

FIRST_SAVE_MINUTES = 2.0


def smallest_gpu_gib() -> float | None:
    """Memory of this node's smallest GPU; all its ranks see the same. None on a CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return min(sizes) / 2**30 if sizes else None


class Attempt:
    """One attempt on one rank."""

    def __init__(
        self,
        recipe: Recipe,
        batch: Batch,
        *,
        run: str,
        revision: str | None,
        store: Store,
        head: Head,
        scratch: Scratch,
        stop: StopRequest,
        tokens: TokenCache,
        ops: OpsCache,
        trackers: list[str],
        history: History | None,
        log_probs: Ahead | None,
    ) -> None:
        """`revision` of the base model; `trackers` of this rank; `history` where they have one; `log_probs` where they
        are precomputed."""
        self.recipe = recipe
        self.batch = batch
        self.run_name = run
        self.revision = revision
        self.store = store
        self.head = head
        self.scratch = scratch
        self.stop = stop
        self.tokens = tokens
        self.ops = ops
        self.trackers = trackers
        self.history = history
        self.log_probs = log_probs
        self.device: Device = "cuda" if torch.cuda.is_available() else "cpu"
        self.diary = Diary(store, head.epoch)

    def run(self, prefetch: Prefetch, shared_prefetch: Prefetch) -> Outcome:
        """Do the attempt; returns how it ended. Raises `NotusError`."""
        arguments = self._arguments()
        self.keeper = self._keeper()
        self._announce("preparing data")
        model_name = self._base_model()
        with blaming("the tokenizer of", self.recipe.model.name, "model.name"):
            tokenizer = AutoTokenizer.from_pretrained(model_name, revision=self.revision)
        self.pairs = self._prepare(tokenizer)
        self.fingerprint = fingerprint(
            self.recipe,
            world_size=dist.get_world_size(),
            global_batch=self.batch.total,
            device=torch.cuda.get_device_name() if self.device == "cuda" else cpu_device(cpu_capability()),
            attention=self.attention,
            determinism=self.determinism,
            dataset=self.pairs.fingerprint,
            base=from_rank_0(identify_base(model_name, self.revision) if dist.get_rank() == 0 else {}),
        )
        self._announce("loading the model")
        self._build(arguments, model_name, tokenizer)
        if dist.get_rank() == 0 and not self.head.commits:
            keep_model_files(self.trainer, tokenizer, self.store, self.scratch.work / "model")
        self._announce("restoring")
        resume_from = self._restore(prefetch, shared_prefetch)
        self.trainer.train(resume_from_checkpoint=resume_from)
        step = self.trainer.state.global_step
        self.keeper.settle()
        self.keeper.saver.close()
        self.curves.show(self.record.flush())
        self.curves.close()
        if self.rhythm.stopping or step < self.trainer.state.max_steps:
            return Outcome(kind="preempted", step=step)
        self._finish(tokenizer)
        return Outcome(kind="finished", step=step)

    def _finish(self, tokenizer: Any) -> None:
        self._announce("exporting")
        folder = self.scratch.work / "final"
        base = self.fingerprint["base"]
        export_model(self.trainer, tokenizer, self.store, folder, self.diary, base=base, attempt=self.head.epoch)
        if dist.get_rank() == 0 and self.recipe.hub is not None:
            push_model(self.recipe.hub, folder, self.diary)

    # --- building ---------------------------------------------------------------------------------

    def _arguments(self) -> DPOConfig:
        """TRL's settings. Creating them starts the process group."""
        wanted = self.device == "cuda" and self.recipe.training.deterministic
        self.determinism = make_deterministic() if wanted else {}
        self.ops.install()
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
        if self.device == "cpu":
            torch.set_num_threads(1)
            self._configure_accelerate_on_cpu()
        elif int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            raise HardwareError(
                f"{os.environ['LOCAL_WORLD_SIZE']} ranks, but torch sees {torch.cuda.device_count()} GPUs",
                "set --processes, or look at CUDA_VISIBLE_DEVICES",
            )
        flash = self.device == "cuda" and is_flash_attn_2_available()
        attention, why = choose_attention(self.recipe.model.attention, device=self.device, flash_installed=flash)
        logger.info("attention: %s (%s)", attention, why)
        self.attention = attention
        self.scratch.work.mkdir(parents=True, exist_ok=True)
        return DPOConfig(
            **dpo_arguments(
                self.recipe,
                self.batch,
                device=self.device,
                attention=attention,
                output=self.scratch.work / "trainer",
                run=self.run_name,
                revision=self.revision,
            )
        )

    def _configure_accelerate_on_cpu(self) -> None:
        """accelerate picks plain multi-CPU for use_cpu=True and refuses bf16 for use_cpu=False: tell it first."""
        if self.recipe.zero is not None:
            from accelerate import PartialState

            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(cpu=False, backend="gloo")
            del os.environ["ACCELERATE_USE_DEEPSPEED"]

    def _keeper(self) -> Keeper:
        setup = Setup(
            bucket=os.environ["NOTUS_BUCKET"],
            run=self.run_name,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            writer_id=self.head.writer.id,
            epoch=self.head.epoch,
            retention=Retention(
                newest=self.recipe.saves.keep + 1,  # and one as the fallback
                every_steps=self.recipe.saves.keep_every_steps,
                best=self.recipe.saves.keep_best is not None,
            ),
        )
        self.memory = RunMemory(self.store.url)
        self.memory.hold(self.head.writer.id)
        buffer = SharedBuffer(
            self.memory.snapshot(self.head.writer.id, setup.rank),
            fallback=self.memory.fallback(self.head.writer.id, setup.rank),
            pin=pinning(self.device),
        )
        return Keeper(self.store, self.head, setup, Saver(setup, buffer, copy_scope(self.device)))

    def _base_model(self) -> str:
        """The base model's hub name or folder; a built-in one is made here, once a machine."""
        name = self.recipe.model.name
        if int(os.environ["LOCAL_RANK"]) == 0:
            make_base_model(name, self.scratch.work)
        dist.barrier()
        return base_model(name, self.scratch.work)

    def _prepare(self, tokenizer: Any) -> Pairs:
        """From the bucket, or made by rank 0 for all: they are on one machine."""
        key, is_new = "", False
        if dist.get_rank() == 0:
            key = tokens_key(self.recipe, tokenizer)
            if is_new := not self.tokens.fetch(key):
                self.tokens.keep(key, prepare(self.recipe, tokenizer))
        key = from_rank_0(key)
        pairs = self.tokens.load(key)
        if is_new:  # while the others go on
            self.tokens.publish(key)
        return pairs

    def _reference_cache(self, rows: Any, batch: int) -> ReferenceCache:
        """Of the run: its key names all that decides the values, but not how many processes compute them."""
        self._announce("reference log-probs")
        identity = {
            "model": self.recipe.model.model_dump(mode="json"),
            "bf16": self.recipe.training.bf16,
            "batch": batch,
            "device": self.fingerprint["device"],
            "attention": self.attention,
            "versions": self.fingerprint["versions"],
        }
        key = from_rank_0(reference_key(identity, rows) if dist.get_rank() == 0 else None)
        return ReferenceCache(self.store, key, len(rows), batch, self.log_probs)

    def _build(self, arguments: DPOConfig, model_name: str, tokenizer: Any) -> None:
        self.engine = None
        peft_config = None
        if self.recipe.zero is not None:
            from trainer.deepspeed_engine import install

            self.engine = install()
        if self.recipe.lora is not None:
            from trainer.lora import peft_settings

            peft_config = peft_settings(self.recipe.lora)
        with blaming("the model", self.recipe.model.name, "model.name"):
            self.trainer = NotusDPOTrainer(
                model=model_name,
                args=arguments,
                train_dataset=self.pairs.train,
                eval_dataset=self.pairs.evaluation,
                processing_class=tokenizer,
                peft_config=peft_config,
                reference=self._reference_cache,
            )
        if self.recipe.lora is not None:
            from trainer.lora import name_base

            model = self.recipe.model
            name_base(self.trainer.model, *public_base(model.name, model.revision, self.fingerprint["base"]))
        if self.recipe.needs_bitsandbytes:
            from trainer.lora import count_quantized, in_full_precision

            in_full_precision(self.trainer.model)
            logger.info("base weights in 4 bits: %d of %d matrices", *count_quantized(self.trainer.model))
        self.record = StepRecord(
            self.trainer,
            Meter(self._speedometer(), self.head.epoch),
            self.keeper.saver,
            self.store,
            attempt=self.head.epoch,
            rank=dist.get_rank(),
            wandb="wandb" in self.trackers,
        )
        self.trainer.more_figures = self.record.more_figures
        self.trainer.on_logged = self._on_logged
        self.rhythm = Rhythm(
            self.recipe.saves,
            self.stop,
            device=arguments.device,
            on_begin=self._on_train_begin,
            on_step_begin=self.record.begin_step,
            on_step_end=self._on_step_end,
            on_evaluated=self._on_evaluated,
            interval_minutes=self._interval_minutes,
            poll=self.keeper.poll,
            on_failed_save=self.keeper.resolve_failure,
        )
        self.trainer.add_callback(self.rhythm)
        self.trainer.save_state = self._save
        self.trainer.announce = self._announce

    def _speedometer(self) -> Speedometer:
        return speedometer(
            shape_from_config(self.trainer.model.config.to_dict()),
            gpu=torch.cuda.get_device_name() if self.device == "cuda" else None,
            world_size=dist.get_world_size(),
            lora=self.recipe.lora is not None,
            live_reference=self.recipe.dpo.reference == "live",
        )

    # --- saving and resuming ----------------------------------------------------------------------

    def _restore(self, prefetch: Prefetch, shared_prefetch: Prefetch) -> str | None:
        """Stage the newest good checkpoint for the Trainer; returns the folder, or None to start from the base."""
        started = time.monotonic()
        shard = self.keeper.restore(prefetch)
        if dist.get_rank() == 0:  # every rank has read what it could
            self.memory.remove_dead()
        if shard is None:
            logger.info("no checkpoint yet: starting from the base model")
            return None
        manifest = shard.manifest
        not_exact = check_fingerprint(manifest.fingerprint, self.fingerprint) + not_reproducible(self.fingerprint)
        commit = next(commit for commit in self.head.commits if commit.step == manifest.step)
        trees = shard.trees()
        if shared_prefetch is not prefetch:
            trees = {**shared_prefetch.load(commit).trees(), **trees}
        trees["trainer"] = from_rank_0(trees.get("trainer"))  # rank 0 saves it for all
        states.check_cursor(self.trainer, trees["cursor"], self.pairs.fingerprint)
        if manifest.world_size != dist.get_world_size():
            states.adapt_to_world_size(trees, manifest.world_size)
        self.trainer.resume = trees
        logger.info("resuming from step %d, saved by attempt %d", manifest.step, manifest.epoch)
        if dist.get_rank() == 0:
            for reason in not_exact:
                logger.warning("not exact from here on: %s", reason)
            waited_s = round(time.monotonic() - started, 3)
            self.diary.write(
                "resumed", step=manifest.step, size_bytes=manifest.size_bytes, waited_s=waited_s, not_exact=not_exact
            )
        folder = self.scratch.work / f"resume-r{dist.get_rank()}"
        return str(states.stage(trees, self.engine, folder))

    def _save(self) -> None:
        """Start a save; wait for it only where nothing can be gained by going on."""
        reason, step = self.rhythm.reason, self.trainer.state.global_step
        if self.keeper.saver.newest_step == step:  # saved or on its way, the restored step too: nothing to add
            self.keeper.settle(tolerant=True)
            if self.keeper.saver.newest_step == step:
                return
        if reason == "stop" and not self._emergency():
            return
        self.keeper.settle(tolerant=True)  # the one before
        self._announce("saving")
        started = time.monotonic()
        trees = self._captured()
        self.keeper.saver.count_stall(time.monotonic() - started)
        lines = self.record.lines
        if self.keeper.saver.save(step, trees, reason=reason, fingerprint=self.fingerprint, metrics=lines):
            self.record.taken()
        if reason in ("stop", "final"):
            self.keeper.settle()
        self._announce("training")

    def _captured(self) -> dict[str, Any]:
        """The state as trees of tensors that are not copied yet."""
        return states.capture(
            self.trainer,
            self.engine,
            self.scratch.work / "engine",
            self.pairs.fingerprint,
            evaluation_due=self.rhythm.evaluation_due,
        )

    def _emergency(self) -> bool:
        """Decide together what fits into the time that is left; True = save the newest step."""
        while (choice := self.keeper.choose(self.stop.seconds_left())) == "finish, then see":
            self.keeper.settle(tolerant=True)  # the first save: from its end on there are figures
        logger.info("stopping: %s", choice)
        if choice in ("save now", "leave"):
            self.keeper.give_up()
        return choice in ("finish, then save", "save now")

    def _interval_minutes(self) -> float | None:
        """By the clock: what the recipe says, or what the saves so far suggest; None = not by the clock."""
        saves = self.recipe.saves
        if not saves.auto:
            return saves.every_minutes
        costs = self.keeper.saver.costs
        if costs is None:
            return FIRST_SAVE_MINUTES  # soon: it is also the measurement
        hours = float(os.environ.get(HOURS_TO_PREEMPTION) or ASSUMED_HOURS_TO_PREEMPTION)
        return auto_interval_minutes(
            stall_s=costs.stall_s, upload_s=costs.upload_s, mean_time_to_preemption_s=hours * 3600
        )

    # --- during training --------------------------------------------------------------------------

    def _on_train_begin(self) -> None:
        optimizer = check_optimizer(self.trainer, self.recipe)
        optimizer.register_step_pre_hook(lambda *args: self.keeper.saver.wait_copied())
        if (resumed := self.trainer.resume) is not None:
            states.restore_counters(self.trainer, resumed["counters"])
            if "recomputed" in resumed:
                states.check_recomputed(states.computed_weights(self.trainer), resumed["recomputed"])
            self.trainer.args.eval_on_start = resumed["cursor"]["evaluation_due"]
        self._open_curves()
        self.first_step = True
        self._announce("training")

    def _open_curves(self) -> None:
        """After the restore: what the curves have to show from before is known."""
        step = self.trainer.state.global_step
        past = self.history.rows(step, evaluation_due=self.trainer.args.eval_on_start) if self.history else []
        config = {"recipe": self.recipe.model_dump(mode="json"), "fingerprint": self.fingerprint}
        openers: dict[str, Callable[[], Curve]] = {
            "wandb": lambda: WandbCurve(self.run_name, config),
            "tensorboard": lambda: TensorBoardCurve(self.scratch.tensorboard, first_step_shown(past, step)),
        }
        self.curves = Curves({name: openers[name] for name in self.trackers})
        self.curves.show(past)

    def _on_logged(self, logs: dict[str, Any]) -> None:
        if dist.get_rank() == 0:
            self.curves.show(self.record.logged(Row(self.trainer.state.global_step, False, numbers(logs))))

    def _release_restored(self) -> None:
        """The restored state has been copied to where it belongs: 7 GB a rank for a 7B model."""
        self.trainer.resume = None
        if self.engine is not None:
            self.engine.restored = {}

    def _on_step_end(self, state: TrainerState) -> None:
        if nonsense := self.record.end_step(state):
            self._refuse(nonsense, state.global_step)
        if self.first_step:
            self.first_step = False
            self._release_restored()
            self.keeper.saver.prepare(self._captured())  # now the optimizer has its state
            if dist.get_rank() == 0:
                progress = {"step": state.global_step, "total_steps": state.max_steps}
                self.diary.try_write("training", **progress, links=tracker_links())
                self.ops.publish()
        self._announce("training")

    def _refuse(self, nonsense: str, step: int) -> NoReturn:
        """Before this step is saved. Raises `UserError`: the next attempt would compute the same."""
        left = what_is_left((commit.step for commit in self._commits()), step)
        export = "" if self.recipe.lora else "; a checkpoint as a model: notus-ckpt export --step"
        raise UserError(
            f"{nonsense} at step {step}: training stops, {left}",
            f"lower training.learning_rate (now {self.recipe.training.learning_rate:g}) or look at the data, and start "
            f"a new run{export}",
        )

    def _commits(self) -> Sequence[Commit]:
        """What is in the bucket now; a save on its way may still come."""
        try:
            head = read_head(self.store)
        except NotusError:
            return self.head.commits
        return head.commits if head else ()

    def _on_evaluated(self, state: TrainerState, metrics: dict[str, float]) -> None:
        if dist.get_rank() == 0:
            self._note_evaluation(Row(state.global_step, True, numbers(metrics)))
        if (metric := self.recipe.saves.keep_best) is not None:
            self.keeper.settle(tolerant=True)  # the checkpoint has to be in HEAD to get its score
            self.keeper.score(state.global_step, metric, metrics)

    def _note_evaluation(self, row: Row) -> None:
        """In the diary before the trackers have it."""
        try:
            self.diary.write("evaluated", step=row.step, metrics=row.values)
        except NotusError as error:
            logger.warning("the evaluation of step %d is not noted: %s", row.step, error.message)
        else:
            self.curves.show(self.record.logged(row))

    def _announce(self, phase: Phase) -> None:
        if dist.get_rank() == 0:
            state = self.trainer.state if hasattr(self, "trainer") else None
            self.scratch.write_progress(
                Progress(
                    phase=phase,
                    step=state.global_step if state else 0,
                    total_steps=state.max_steps if state else 0,
                    loss=self.record.loss if hasattr(self, "record") else None,
                )
            )
