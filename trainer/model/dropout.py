"""Enables the adapters' dropout, as set in the recipe, and disables all others.

DPO compares a model with itself, so a base model's own dropouts would be noise in the difference: GPT-2, OPT and Falcon
have some of 0.1. TRL disables all dropout modules, including LoRA's. Some models have a number instead, in a module
(OPT) or in their config (Falcon).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainer.config.recipe import Lora

NOISE = ("drop", "jitter")
"""Words in the names of numbers that make a forward pass random; mixtures of experts have router jitter."""
Numbers = dict[str, float]
"""A config's dropouts, by key."""


def settle_dropouts(model: Any, lora: Lora | None) -> Numbers:
    """After TRL has disabled its modules: disable the rest of the base model's, and enable the adapters' again.

    Returns what was in the model's config: it belongs in the exported one, see `as_given`.
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
    """Restore the base model's values in the model's config while it is written."""
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
