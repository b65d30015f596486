"""LoRA adapters through peft."""

from __future__ import annotations

from peft import LoraConfig

from trainer.recipe import Lora


def peft_settings(lora: Lora) -> LoraConfig:
    """peft's settings for a recipe's `lora:` section."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
