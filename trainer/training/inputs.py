"""Settles and checks what an attempt trains with before the model is loaded: device, base model, token ids, identity.

Collective: every rank calls these functions, in the same order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch.distributed as dist
from transformers import AutoConfig, AutoTokenizer
from trl import DPOConfig

from checkpoints.errors import NotusError
from trainer.build_cache.ops_build_folder import BUILD_FOLDER
from trainer.config.fingerprint import Base, fingerprint
from trainer.config.recipe import BUILTIN
from trainer.config.run_pins import check_pins
from trainer.config.trl_config import dpo_arguments
from trainer.data.dataset import Pairs, prepare
from trainer.data.input_hash import code_digest
from trainer.data.token_cache import tokens_key
from trainer.data.token_ids import check_token_ids, hash_ids
from trainer.devices.collectives import from_rank_0
from trainer.devices.device import DeviceSetup, compiles_operators, set_up_device
from trainer.hub.load_errors import translated_errors
from trainer.model.base_files import CONFIG, check_config
from trainer.model.base_identity import identify_base
from trainer.model.builtin_models import base_model, make_base_model
from trainer.runtime.startup_phases import Count, Tally, compiled_in
from trainer.training.context import AttemptContext


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What determines the result of an attempt."""

    model_name: str
    """The base model's name on the Hub, or its folder."""
    use_cache: bool | None
    """The value in the base model's configuration; None if it has none."""
    tokenizer: Any
    pairs: Pairs
    fingerprint: dict[str, Any]


def settle_arguments(context: AttemptContext) -> tuple[DPOConfig, DeviceSetup]:
    """Return TRL's settings, and the device. Creating the settings starts the process group."""
    # First, because setting up the device creates DeepSpeed's process group, which needs a compiler.
    if not context.ops.install() and compiles_operators(context.recipe):
        context.announce("compiling", lambda: compiled_in(Path(os.environ[BUILD_FOLDER])))
    setup = set_up_device(context.recipe)
    work = context.claim.scratch.work
    work.mkdir(parents=True, exist_ok=True)
    settings = dpo_arguments(
        context.recipe,
        context.batch,
        device=setup.device,
        attention=setup.attention,
        output=work / "trainer",
        run=context.claim.run,
        revision=context.revision,
    )
    return DPOConfig(**settings), setup


def prepare_inputs(context: AttemptContext, setup: DeviceSetup) -> Inputs:
    """Read, check and identify everything. Raises `UserError`, and `NotExact` if this is not the run it was."""
    recipe = context.recipe
    context.announce("preparing data")
    model_name = _base_model(context)
    tokenizer, config = _tokenizer_and_config(context, model_name)
    pairs = _prepare_pairs(context, tokenizer)
    check_token_ids(pairs, tokenizer, config, recipe.model.name)
    identity = fingerprint(
        recipe,
        world_size=dist.get_world_size(),
        global_batch=context.batch.total,
        device=setup.name,
        attention=setup.attention,
        determinism=setup.determinism,
        dataset=pairs.fingerprint,
        tokens=hash_ids(pairs),
        base=_identify_base(context, model_name),
        code=code_digest(),
    )
    _check_pins(context, identity)
    return Inputs(
        model_name=model_name,
        use_cache=getattr(config, "use_cache", None),
        tokenizer=tokenizer,
        pairs=pairs,
        fingerprint=identity,
    )


def _base_model(context: AttemptContext) -> str:
    """The base model's hub name or folder; a built-in one is made here, once per machine."""
    name, work = context.recipe.model.name, context.claim.scratch.work
    if int(os.environ["LOCAL_RANK"]) == 0:
        make_base_model(name, work)
    dist.barrier()
    return base_model(name, work)


def _tokenizer_and_config(context: AttemptContext, model_name: str) -> tuple[Any, Any]:
    """The base model's tokenizer and config; a misfit with the recipe is refused before the weights are loaded."""
    recipe = context.recipe
    name = recipe.model.name
    with translated_errors("the tokenizer of", name, "model.name"):
        tokenizer = AutoTokenizer.from_pretrained(model_name, revision=context.revision)
    with translated_errors("the model", name, "model.name"):
        config = AutoConfig.from_pretrained(model_name, revision=context.revision)
        check_config(config.to_dict(), recipe, f"{name}/{CONFIG}")
        if recipe.lora is not None:
            from trainer.model.lora import check_targets

            check_targets(recipe.lora, config, name)
    return tokenizer, config


def _prepare_pairs(context: AttemptContext, tokenizer: Any) -> Pairs:
    """The pairs, from the bucket or made by rank 0 for all ranks, which are on one machine."""
    tokens = context.tokens
    key, is_new = "", False
    if dist.get_rank() == 0:
        key = tokens_key(context.recipe, tokenizer)
        if is_new := not tokens.fetch(key):
            made = _tokenize(context, tokenizer)
            tokens.keep(key, made)
            context.claim.diary.try_write(made.as_event())
    key = from_rank_0(key)
    pairs = tokens.load(key)
    if is_new:  # in the background
        tokens.publish(key)
    return pairs


def _tokenize(context: AttemptContext, tokenizer: Any) -> Pairs:
    tally = Tally(context.claim.scratch.work / "rows-done")
    context.announce("preparing data", lambda: Count(tally.read()))
    return prepare(context.recipe, tokenizer, tally)


def _identify_base(context: AttemptContext, model_name: str) -> Base:
    made_here = context.recipe.model.name.startswith(BUILTIN)
    mine = identify_base(model_name, context.revision, made_here=made_here) if dist.get_rank() == 0 else {}
    return from_rank_0(mine)


def _check_pins(context: AttemptContext, identity: dict[str, Any]) -> None:
    """Check that this is still the run that its first attempt began."""
    error: NotusError | None = None
    if dist.get_rank() == 0:
        try:
            check_pins(context.claim.store, identity, begun=bool(context.claim.head.commits))
        except NotusError as caught:
            error = caught
    if (failure := from_rank_0(error)) is not None:
        raise failure
