"""Which dropouts are on: those of the adapters, as the recipe says, and no others.

DPO compares a model with itself, so a base model's own dropouts would be noise in the difference: GPT-2, OPT and Falcon
have some of 0.1. TRL switches off all modules of that kind, those of LoRA too. Some models keep a number instead, in a
module (OPT) or in their config (Falcon).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainer.config.recipe import Lora

NOISE = ("drop", "jitter")
"""In the names of numbers that make a forward pass random; mixtures of experts have a jitter of their routers."""
Numbers = dict[str, float]
"""Dropouts of a config, by key."""


def settle_dropouts(model: Any, lora: Lora | None) -> Numbers:
    """After TRL has switched them off: the rest of the base model's too, and the adapters' on again.

    Returns what was in the model's config: it belongs into the exported one, see `as_given`.
    """
    for path, module in model.named_modules():
        for name in _numbers(vars(module)):
            setattr(module, name, 0.0)
        if lora is not None and isinstance(module, torch.nn.Dropout) and ".lora_dropout." in f".{path}.":
            module.p = lora.dropout
    given = _numbers(vars(model.config))
    for name in given:
        setattr(model.config, name, 0.0)
    return given


@contextlib.contextmanager
def as_given(model: Any, given: Mapping[str, Any]) -> Iterator[None]:
    """The model's config with the values of the base model's, while it is written."""
    training = {name: getattr(model.config, name) for name in given}
    for name, value in given.items():
        setattr(model.config, name, value)
    try:
        yield
    finally:
        for name, value in training.items():
            setattr(model.config, name, value)


def _numbers(attributes: dict[str, Any]) -> Numbers:
    return {
        name: value
        for name, value in attributes.items()
        if any(word in name for word in NOISE) and isinstance(value, float) and value > 0
    }
