"""Trackers: which can work here, and what they leave on the local disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from checkpoints.store import Store
from trainer.recipe import Recipe

logger = logging.getLogger(__name__)


def usable_trackers(recipe: Recipe, environment: Mapping[str, str]) -> list[str]:
    """The recipe's trackers that can work here. W&B without a key would ask a question that nobody answers."""
    trackers: list[str] = list(recipe.tracking)
    offline = environment.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in trackers and not offline and not environment.get("WANDB_API_KEY"):
        logger.warning("no WANDB_API_KEY: not reporting to W&B (the metrics are in the bucket all the same)")
        trackers.remove("wandb")
    return trackers


def mirror_tensorboard(store: Store, folder: Path) -> None:
    """Put TensorBoard's event files into the bucket: a VM's disk is gone with the VM.

    Each attempt writes files of its own; TensorBoard shows a folder of them as one curve.
    """
    for path in sorted(folder.rglob("*tfevents*")):
        store.put_file(f"tensorboard/{path.name}", path)
