"""Checks that the recipe's optimizer is the one that runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from trainer.config.recipe import Recipe
from trainer.errors import HardwareError

if TYPE_CHECKING:
    from trainer.method import MethodTrainer

logger = logging.getLogger(__name__)


def check_optimizer(trainer: MethodTrainer, recipe: Recipe) -> torch.optim.Optimizer:
    """The innermost optimizer if it is the recipe's (see `zero_force_ds_cpu_optimizer`); raises `HardwareError`."""
    wanted = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}[recipe.training.optimizer]
    inner = trainer.optimizer
    while type(inner) is not wanted and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if type(inner) is not wanted:
        raise HardwareError(
            f"the recipe asks for {wanted.__name__}, but {type(inner).__name__} would run",
            "this is a fault of the installed accelerate or deepspeed; install the versions of constraints.txt",
        )
    logger.info("optimizer: torch.optim.%s", wanted.__name__)
    return inner
