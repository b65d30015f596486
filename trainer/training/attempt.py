"""The training itself, on every rank: build, restore, train, save, export."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch.distributed as dist
from transformers import AutoConfig, AutoTokenizer, TrainerState
from trl import DPOConfig

from checkpoints.commit.head import Head
from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.event_kinds import Evaluated, Training
from checkpoints.run_log.event_log import Diary
from checkpoints.storage.base import Store
from trainer.build_cache.deepspeed_ops import OpsCache
from trainer.build_cache.ops_build_folder import BUILD_FOLDER
from trainer.checkpointing.prefetch import Prefetch
from trainer.checkpointing.rank_checkpointer import Checkpointing
from trainer.checkpointing.save_callback import Rhythm
from trainer.checkpointing.save_policy import what_is_left
from trainer.config.fingerprint import Base, fingerprint
from trainer.config.global_batch import Batch
from trainer.config.model_shapes import shape_from_config
from trainer.config.recipe import BUILTIN, Recipe
from trainer.config.run_pins import check_pins
from trainer.config.trl_config import dpo_arguments
from trainer.data.dataset import Pairs, prepare
from trainer.data.input_hash import code_digest
from trainer.data.token_cache import TokenCache, tokens_key
from trainer.data.token_ids import check_token_ids, hash_ids
from trainer.devices.collectives import from_rank_0
from trainer.devices.device import compiles_operators, settle_place
from trainer.export.final_model import export_model, keep_model_files, model_files_are_kept
from trainer.export.model_card import public_base
from trainer.hub.load_errors import blaming
from trainer.hub.push import push_model
from trainer.metrics.past_rows import History, Row, numbers
from trainer.metrics.step_log import StepRecord
from trainer.metrics.throughput import Meter, Speedometer, speedometer
from trainer.metrics.tracker_setup import tracker_links
from trainer.metrics.trackers import Curve, Curves, TensorBoardCurve, WandbCurve, first_step_shown
from trainer.model.base_files import CONFIG, check_config, read_headers
from trainer.model.base_identity import folder_of, identify_base
from trainer.model.builtin_models import base_model, make_base_model
from trainer.model.dropout import as_given, settle_dropouts
from trainer.model.generation_config import repair_generation_config
from trainer.model.load_report import complete_weights
from trainer.model.sound_weights import check_weights
from trainer.model.tied_embeddings import check_tied
from trainer.runtime.attempt_dir import Outcome, Phase, Progress, Scratch
from trainer.runtime.startup_phases import Count, PhaseReport, Tally, compiled_in
from trainer.runtime.stop_flag import StopRequest
from trainer.training.dpo_trainer import NotusDPOTrainer
from trainer.training.first_loss_check import wrong_first_loss
from trainer.training.optimizer_check import check_optimizer
from trainer.training.reference_log_probs import Ahead, ReferenceCache, reference_key

logger = logging.getLogger(__name__)


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
        report: PhaseReport | None,
        stop: StopRequest,
        tokens: TokenCache,
        ops: OpsCache,
        trackers: list[str],
        history: History | None,
        log_probs: Ahead | None,
    ) -> None:
        """Take what the attempt needs; starts nothing.

        `report` is for rank 0 only; `revision` is that of the base model; `trackers` are those of this rank; `history`
        is given where they have one, and `log_probs` where they are precomputed.
        """
        self.recipe = recipe
        self.batch = batch
        self.run_name = run
        self.revision = revision
        self.store = store
        self.head = head
        self.scratch = scratch
        self.report = report
        self.stop = stop
        self.tokens = tokens
        self.ops = ops
        self.trackers = trackers
        self.history = history
        self.log_probs = log_probs
        self.diary = Diary(store, head.epoch)

    def run(self, prefetch: Prefetch, shared_prefetch: Prefetch) -> Outcome:
        """Do the attempt; returns how it ended. Raises `NotusError`."""
        arguments = self._arguments()
        self.checkpointing = Checkpointing(
            self.recipe,
            run=self.run_name,
            store=self.store,
            head=self.head,
            scratch=self.scratch,
            stop=self.stop,
            device=self.place.device,
        )
        self.keeper = self.checkpointing.keeper
        self._announce("preparing data")
        model_name = self._base_model()
        tokenizer, config = self._tokenizer_and_config(model_name)
        self.use_cache: bool | None = getattr(config, "use_cache", None)
        self.pairs = self._prepare(tokenizer)
        check_token_ids(self.pairs, tokenizer, config, self.recipe.model.name)
        self.fingerprint = fingerprint(
            self.recipe,
            world_size=dist.get_world_size(),
            global_batch=self.batch.total,
            device=self.place.name,
            attention=self.place.attention,
            determinism=self.place.determinism,
            dataset=self.pairs.fingerprint,
            tokens=hash_ids(self.pairs),
            base=from_rank_0(self._identify_base(model_name) if dist.get_rank() == 0 else {}),
            code=code_digest(),
        )
        self._check_pins()
        self._announce("loading the model")
        self._build(arguments, model_name, tokenizer)
        if dist.get_rank() == 0 and not model_files_are_kept(self.store):
            with as_given(self.trainer.model, self.given):
                keep_model_files(self.trainer, tokenizer, self.store, self.scratch.work / "model")
        self._announce("restoring")
        resume_from = self.checkpointing.restore(prefetch, shared_prefetch)
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
        with as_given(self.trainer.model, self.given):
            export_model(self.trainer, tokenizer, self.store, folder, self.diary, base=base, attempt=self.head.epoch)
        if dist.get_rank() == 0 and self.recipe.hub is not None:
            push_model(self.recipe.hub, folder, self.diary)

    # --- building ---------------------------------------------------------------------------------

    def _arguments(self) -> DPOConfig:
        """TRL's settings. Creating them starts the process group."""
        # First: DeepSpeed's process group, which comes with the place, looks for a compiler.
        if not self.ops.install() and compiles_operators(self.recipe):
            self._announce("compiling", lambda: compiled_in(Path(os.environ[BUILD_FOLDER])))
        self.place = settle_place(self.recipe)
        self.scratch.work.mkdir(parents=True, exist_ok=True)
        return DPOConfig(
            **dpo_arguments(
                self.recipe,
                self.batch,
                device=self.place.device,
                attention=self.place.attention,
                output=self.scratch.work / "trainer",
                run=self.run_name,
                revision=self.revision,
            )
        )

    def _base_model(self) -> str:
        """The base model's hub name or folder; a built-in one is made here, once a machine."""
        name = self.recipe.model.name
        if int(os.environ["LOCAL_RANK"]) == 0:
            make_base_model(name, self.scratch.work)
        dist.barrier()
        return base_model(name, self.scratch.work)

    def _tokenizer_and_config(self, model_name: str) -> tuple[Any, Any]:
        """Of the base model; whatever of it doesn't fit the recipe is refused before it is loaded."""
        name = self.recipe.model.name
        with blaming("the tokenizer of", name, "model.name"):
            tokenizer = AutoTokenizer.from_pretrained(model_name, revision=self.revision)
        with blaming("the model", name, "model.name"):
            config = AutoConfig.from_pretrained(model_name, revision=self.revision)
            check_config(config.to_dict(), self.recipe, f"{name}/{CONFIG}")
            if self.recipe.lora is not None:
                from trainer.model.lora import check_targets

                check_targets(self.recipe.lora, config, name)
        return tokenizer, config

    def _identify_base(self, model_name: str) -> Base:
        return identify_base(model_name, self.revision, made_here=self.recipe.model.name.startswith(BUILTIN))

    def _check_pins(self) -> None:
        """Is this still the run that its first attempt began? Collective."""
        error: NotusError | None = None
        if dist.get_rank() == 0:
            try:
                check_pins(self.store, self.fingerprint, begun=bool(self.head.commits))
            except NotusError as caught:
                error = caught
        if (failure := from_rank_0(error)) is not None:
            raise failure

    def _prepare(self, tokenizer: Any) -> Pairs:
        """From the bucket, or made by rank 0 for all: they are on one machine."""
        key, is_new = "", False
        if dist.get_rank() == 0:
            key = tokens_key(self.recipe, tokenizer)
            if is_new := not self.tokens.fetch(key):
                made = self._tokenise(tokenizer)
                self.tokens.keep(key, made)
                self.diary.try_write(made.told())
        key = from_rank_0(key)
        pairs = self.tokens.load(key)
        if is_new:  # while the others go on
            self.tokens.publish(key)
        return pairs

    def _tokenise(self, tokenizer: Any) -> Pairs:
        tally = Tally(self.scratch.work / "rows-done")
        self._announce("preparing data", lambda: Count(tally.read()))
        return prepare(self.recipe, tokenizer, tally)

    def _reference_cache(self, rows: Any, batch: int) -> ReferenceCache:
        """Of the run: its key names all that decides the values, but not how many processes compute them."""
        self._announce("reference log-probs")
        identity = {
            "model": self.recipe.model.model_dump(mode="json"),
            "base": self.fingerprint["base"],
            "bf16": self.recipe.training.bf16,
            "batch": batch,
            "device": self.fingerprint["device"],
            "attention": self.place.attention,
            "versions": self.fingerprint["versions"],
        }
        key = from_rank_0(reference_key(identity, rows) if dist.get_rank() == 0 else "")
        cache = ReferenceCache(self.store, key, len(rows), batch, self.log_probs)
        self._announce("reference log-probs", lambda: Count(cache.done, cache.rows))
        return cache

    def _build(self, arguments: DPOConfig, model_name: str, tokenizer: Any) -> None:
        self._build_trainer(arguments, model_name, tokenizer)
        self.record: StepRecord = StepRecord(
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
        self.rhythm: Rhythm = Rhythm(
            self.recipe.saves,
            self.stop,
            device=arguments.device,
            on_begin=self._on_train_begin,
            on_step_begin=self.record.begin_step,
            on_step_end=self._on_step_end,
            on_evaluated=self._on_evaluated,
            interval_minutes=self.checkpointing.interval_minutes,
            poll=self.keeper.poll,
            on_failed_save=self.keeper.resolve_failure,
        )
        self.trainer.add_callback(self.rhythm)
        self.checkpointing.attach(
            self.trainer,
            self.engine,
            self.record,
            fingerprint=self.fingerprint,
            dataset=self.pairs.fingerprint,
            announce=self._announce,
        )
        self.trainer.save_state = self._save
        self.trainer.announce = self._announce

    def _build_trainer(self, arguments: DPOConfig, model_name: str, tokenizer: Any) -> None:
        self.engine = None
        peft_config = None
        if self.recipe.zero is not None:
            from trainer.checkpointing.deepspeed_engine import install

            self.engine = install()
        if self.recipe.lora is not None:
            from trainer.model.lora import peft_settings

            peft_config = peft_settings(self.recipe.lora)
        name = self.recipe.model.name
        with blaming("the model", name, "model.name"), complete_weights(name):
            self.trainer = NotusDPOTrainer(
                model=model_name,
                args=arguments,
                train_dataset=self.pairs.train,
                eval_dataset=self.pairs.evaluation,
                processing_class=tokenizer,
                peft_config=peft_config,
                reference=self._reference_cache,
            )
        check_weights(self.trainer.model, name)
        if folder := folder_of(model_name, self.revision):
            check_tied(folder, self.trainer.model.config.to_dict(), read_headers(folder))
        repair_generation_config(self.trainer.model, name)
        self.given: dict[str, Any] = dict(settle_dropouts(self.trainer.model, self.recipe.lora))
        if self.use_cache is not None:  # the Trainer switches it off, and a model that is used has it
            self.given["use_cache"] = self.use_cache
        if self.recipe.lora is not None:
            from trainer.model.lora import name_base

            model = self.recipe.model
            name_base(self.trainer.model, *public_base(model.name, model.revision, self.fingerprint["base"]))
        if self.recipe.needs_bitsandbytes:
            from trainer.model.lora import count_quantized, in_full_precision

            in_full_precision(self.trainer.model)
            logger.info("base weights in 4 bits: %d of %d matrices", *count_quantized(self.trainer.model))

    def _speedometer(self) -> Speedometer:
        return speedometer(
            shape_from_config(self.trainer.model.config.to_dict()),
            gpu=self.place.gpu,
            world_size=dist.get_world_size(),
            lora=self.recipe.lora is not None,
            live_reference=self.recipe.dpo.reference == "live",
        )

    # --- during training --------------------------------------------------------------------------

    def _on_train_begin(self) -> None:
        optimizer = check_optimizer(self.trainer, self.recipe)
        optimizer.register_step_pre_hook(lambda *args: self.keeper.saver.wait_copied())
        self.checkpointing.finish_restore()
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

    def _save(self) -> None:
        self.checkpointing.save(self.rhythm.reason, evaluation_due=self.rhythm.evaluation_due)

    def _on_step_end(self, state: TrainerState) -> None:
        if nonsense := self.record.end_step(state):
            self._refuse(nonsense, state.global_step)
        if self.first_step:
            self.first_step = False
            self._check_reference(state.global_step)
            self.checkpointing.release_restored()
            self.checkpointing.prepare(evaluation_due=self.rhythm.evaluation_due)
            if dist.get_rank() == 0:
                links = tuple(tracker_links())
                self.diary.try_write(Training(step=state.global_step, total_steps=state.max_steps, links=links))
                self.ops.publish()
        self._announce("training")

    def _check_reference(self, step: int) -> None:
        """Of a run's very first step, before it is saved. Raises `UserError`."""
        if step > 1 or self.record.loss is None or self.trainer.aux_loss_enabled:
            return
        if wrong := wrong_first_loss(self.recipe.dpo, self.record.loss):
            raise UserError(
                f"{wrong}: the reference isn't the base model",
                "start a new run with another --name; if it happens again, please report it",
            )

    def _refuse(self, nonsense: str, step: int) -> NoReturn:
        """Before this step is saved. Raises `UserError`: the next attempt would compute the same."""
        left = what_is_left((commit.step for commit in self.checkpointing.commits()), step)
        export = "" if self.recipe.lora else "; a checkpoint as a model: notus-ckpt export --step"
        raise UserError(
            f"{nonsense} at step {step}: training stops, {left}",
            f"lower training.learning_rate (now {self.recipe.training.learning_rate:g}) or look at the data, and start "
            f"a new run{export}",
        )

    def _on_evaluated(self, state: TrainerState, metrics: dict[str, float]) -> None:
        if dist.get_rank() == 0:
            self._note_evaluation(Row(state.global_step, True, numbers(metrics)))
        if (metric := self.recipe.saves.keep_best) is not None:
            self.keeper.settle(tolerant=True)  # the checkpoint has to be in HEAD to get its score
            self.keeper.score(state.global_step, metric, metrics)

    def _note_evaluation(self, row: Row) -> None:
        """In the diary before the trackers have it."""
        try:
            self.diary.write(Evaluated(step=row.step, metrics=row.values))
        except NotusError as error:
            logger.warning("the evaluation of step %d is not noted: %s", row.step, error.message)
        else:
            self.curves.show(self.record.logged(row))

    def _announce(self, phase: Phase, count: Callable[[], Count] = Count) -> None:
        """`count`: how far a phase before the training is."""
        if self.report is None:
            return
        state = self.trainer.state if hasattr(self, "trainer") else None
        progress = Progress(
            phase=phase,
            step=state.global_step if state else 0,
            total_steps=state.max_steps if state else 0,
            loss=self.record.loss if hasattr(self, "record") else None,
            save_s=self.keeper.saver.save_s if hasattr(self, "keeper") else None,
        )
        self.report.begin(progress, count)
