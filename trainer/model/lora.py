"""LoRA adapters through peft."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from checkpoints.errors import UserError
from trainer.config.recipe import Lora


def peft_settings(lora: Lora) -> LoraConfig:
    """PEFT's settings for a recipe's `lora:` section."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )


def check_targets(lora: Lora, config: Any, name: str) -> None:
    """Check that the base model `name`, with this transformers `config`, has every module that gets an adapter.

    peft silently skips those that it doesn't find, as long as it finds one. Raises `UserError`.
    """
    # Not from_config: once DeepSpeed is set up, that partitions the weights.
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    for target in lora.target_modules:
        if not any(path == target or path.endswith(f".{target}") for path in modules):
            linear = {path.rsplit(".", 1)[-1] for path, kind in modules.items() if kind in ("Linear", "Conv1D")}
            raise UserError(
                f"lora.target_modules: {name} has no module {target!r}", f"its matrices: {', '.join(sorted(linear))}"
            )


def name_base(model: PeftModel, name: str, revision: str | None) -> None:
    """Name the base model in adapter_config.json.

    PEFT would write the path that the model was loaded from, which may be a scratch folder, and no revision.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = name, revision


def in_full_precision(model: torch.nn.Module) -> None:
    """Cast the adapters to fp32: TRL casts those of a quantized model to bf16.

    Under DDP they have no fp32 master, and at DPO's learning rates most updates would be rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def count_quantized(model: torch.nn.Module) -> tuple[int, int]:
    """How many of the base model's matrices are in 4 bits, and how many there are in total."""
    base = [module for name, module in model.named_modules() if "lora_" not in name]
    found = [module for module in base if isinstance(module, torch.nn.Linear)]
    return sum(type(module).__name__ == "Linear4bit" for module in found), len(found)
