"""An attempt on every rank, from top to bottom: build, restore, train, save, export."""

from __future__ import annotations

import torch.distributed as dist

from trainer.checkpointing.prefetch import Prefetch
from trainer.checkpointing.rank_checkpointer import start_saver
from trainer.export.final_model import export_model, keep_model_files, model_files_are_kept
from trainer.hub.push import push_model
from trainer.model.dropout import as_given
from trainer.runtime.attempt_dir import Outcome
from trainer.training.build import Components, build
from trainer.training.context import AttemptContext
from trainer.training.inputs import Inputs, prepare_inputs, settle_arguments


def run_attempt(context: AttemptContext, prefetch: Prefetch, shared_prefetch: Prefetch) -> Outcome:
    """Run the attempt and return how it ended.

    `prefetch` has this rank's shard, `shared_prefetch` the one with the weights. Raises `NotusError`.
    """
    arguments, setup = settle_arguments(context)
    saver = start_saver(context.claim, context.recipe.saves, setup.device)
    inputs = prepare_inputs(context, setup)
    context.announce("loading the model")
    components = build(context, inputs, arguments, setup, saver)
    _keep_model_files(context, inputs, components)
    context.announce("restoring")
    resume_from = components.checkpointer.restore(prefetch, shared_prefetch)
    trainer = components.trainer
    trainer.train(resume_from_checkpoint=resume_from)
    components.hooks.on_train_end()
    step: int = trainer.state.global_step
    if components.decision.stopping or step < trainer.state.max_steps:
        return Outcome(kind="preempted", step=step)
    _export(context, inputs, components)
    return Outcome(kind="finished", step=step)


def _keep_model_files(context: AttemptContext, inputs: Inputs, components: Components) -> None:
    claim = context.claim
    if dist.get_rank() == 0 and not model_files_are_kept(claim.store):
        with as_given(components.trainer.model, components.as_loaded):
            keep_model_files(components.trainer, inputs.tokenizer, claim.store, claim.scratch.work / "model")


def _export(context: AttemptContext, inputs: Inputs, components: Components) -> None:
    components.hooks.announce("exporting")
    claim, trainer = context.claim, components.trainer
    folder = claim.scratch.work / "final"
    base = inputs.fingerprint["base"]
    with as_given(trainer.model, components.as_loaded):
        export_model(trainer, inputs.tokenizer, claim.store, folder, claim.diary, base=base, attempt=claim.head.epoch)
    if dist.get_rank() == 0 and context.recipe.hub is not None:
        push_model(context.recipe.hub, folder, claim.diary)
