"""Builds the trainer and everything that it works with. Nothing here changes afterwards."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from trl import DPOConfig

from trainer.checkpointing.distributed_saver import DistributedSaver
from trainer.checkpointing.rank_checkpointer import RankCheckpointer, SavedState
from trainer.checkpointing.save_callback import SaveCallback, SaveDecision
from trainer.config.model_shapes import shape_from_config
from trainer.devices.collectives import from_rank_0
from trainer.devices.device import DeviceSetup
from trainer.export.model_card import public_base
from trainer.hub.load_errors import translated_errors
from trainer.metrics.step_log import StepRecord
from trainer.metrics.throughput import Meter, speedometer
from trainer.model.base_files import read_headers
from trainer.model.base_identity import folder_of
from trainer.model.dropout import settle_dropouts
from trainer.model.generation_config import loadable_generation_config, repair_generation_config
from trainer.model.load_report import complete_weights
from trainer.model.sound_weights import check_weights
from trainer.model.tied_embeddings import check_tied
from trainer.runtime.startup_phases import Count
from trainer.training.context import AttemptContext
from trainer.training.dpo_trainer import NotusDPOTrainer
from trainer.training.hooks import AttemptHooks
from trainer.training.inputs import Inputs
from trainer.training.reference_log_probs import ReferenceCache, reference_key

if TYPE_CHECKING:
    from trainer.checkpointing.deepspeed_engine import BucketEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Components:
    """The parts of an attempt, wired to each other."""

    trainer: NotusDPOTrainer
    checkpointer: RankCheckpointer
    hooks: AttemptHooks
    decision: SaveDecision
    as_loaded: dict[str, Any]
    """Settings of the base model's configuration that differ during training."""


def build(
    context: AttemptContext, inputs: Inputs, arguments: DPOConfig, setup: DeviceSetup, saver: DistributedSaver
) -> Components:
    """Load the model and build its trainer. Raises `UserError` for weights that can't be trained. Collective."""
    recipe, claim = context.recipe, context.claim
    engine = _install_engine() if recipe.zero is not None else None
    trainer = _build_trainer(context, inputs, arguments, setup)
    as_loaded = _settle_model(context, inputs, trainer)
    record = StepRecord(
        trainer,
        _meter(context, trainer, setup),
        saver.local,
        claim.store,
        attempt=claim.head.epoch,
        rank=dist.get_rank(),
        wandb="wandb" in context.trackers,
    )
    state = SavedState(
        trainer=trainer,
        engine=engine,
        record=record,
        fingerprint=inputs.fingerprint,
        dataset=inputs.pairs.fingerprint,
    )
    checkpointer = RankCheckpointer(claim, recipe.saves, saver, state)
    decision = SaveDecision()
    hooks = AttemptHooks(context, state, checkpointer, decision)
    trainer.hooks = hooks
    trainer.add_callback(SaveCallback(recipe.saves, claim.stop, checkpointer, hooks, decision))
    return Components(trainer=trainer, checkpointer=checkpointer, hooks=hooks, decision=decision, as_loaded=as_loaded)


def _install_engine() -> BucketEngine:
    from trainer.checkpointing.deepspeed_engine import install

    return install()


def _build_trainer(
    context: AttemptContext, inputs: Inputs, arguments: DPOConfig, setup: DeviceSetup
) -> NotusDPOTrainer:
    peft_config = None
    if context.recipe.lora is not None:
        from trainer.model.lora import peft_settings

        peft_config = peft_settings(context.recipe.lora)
    name = context.recipe.model.name
    with translated_errors("the model", name, "model.name"), complete_weights(name), loadable_generation_config(name):
        return NotusDPOTrainer(
            model=inputs.model_name,
            args=arguments,
            train_dataset=inputs.pairs.train,
            eval_dataset=inputs.pairs.evaluation,
            processing_class=inputs.tokenizer,
            peft_config=peft_config,
            reference=lambda rows, batch: _reference_cache(context, inputs, setup, rows, batch),
        )


def _reference_cache(
    context: AttemptContext, inputs: Inputs, setup: DeviceSetup, rows: Any, batch: int
) -> ReferenceCache:
    """The run's cache. Its key covers everything that determines the values, but not the number of processes."""
    context.announce("reference log-probs")
    identity = {
        "model": context.recipe.model.model_dump(mode="json"),
        "base": inputs.fingerprint["base"],
        "bf16": context.recipe.training.bf16,
        "batch": batch,
        "device": inputs.fingerprint["device"],
        "attention": setup.attention,
        "versions": inputs.fingerprint["versions"],
    }
    key = from_rank_0(reference_key(identity, rows) if dist.get_rank() == 0 else "")
    cache = ReferenceCache(context.claim.store, key, len(rows), batch, context.log_probs)
    context.announce("reference log-probs", lambda: Count(cache.done, cache.rows))
    return cache


def _settle_model(context: AttemptContext, inputs: Inputs, trainer: NotusDPOTrainer) -> dict[str, Any]:
    """Check and adjust the loaded model; return the settings that an export has to put back."""
    recipe, model = context.recipe, trainer.model
    name = recipe.model.name
    check_weights(model, name)
    if folder := folder_of(inputs.model_name, context.revision):
        check_tied(folder, model.config.to_dict(), read_headers(folder))
    repair_generation_config(model, name)
    as_loaded: dict[str, Any] = dict(settle_dropouts(model, recipe.lora))
    if inputs.use_cache is not None:  # the Trainer disables it, but the exported model needs it
        as_loaded["use_cache"] = inputs.use_cache
    if recipe.lora is not None:
        from trainer.model.lora import name_base

        name_base(model, *public_base(name, recipe.model.revision, inputs.fingerprint["base"]))
    if recipe.needs_bitsandbytes:
        from trainer.model.lora import count_quantized, in_full_precision

        in_full_precision(model)
        logger.info("base weights in 4 bits: %d of %d matrices", *count_quantized(model))
    return as_loaded


def _meter(context: AttemptContext, trainer: NotusDPOTrainer, setup: DeviceSetup) -> Meter:
    speed = speedometer(
        shape_from_config(trainer.model.config.to_dict()),
        gpu=setup.gpu,
        world_size=dist.get_world_size(),
        lora=context.recipe.lora is not None,
        live_reference=context.recipe.dpo.reference == "live",
    )
    return Meter(speed, context.claim.head.epoch)
