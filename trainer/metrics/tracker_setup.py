"""Trackers: which can work here, and what they leave on the local disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from checkpoints.storage.base import Store
from trainer.config.recipe import Recipe

logger = logging.getLogger(__name__)


def usable_trackers(recipe: Recipe, environment: Mapping[str, str]) -> list[str]:
    """The recipe's trackers that can work here. W&B without a key would ask a question that nobody answers."""
    trackers: list[str] = list(recipe.tracking)
    offline = environment.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in trackers and not offline and not environment.get("WANDB_API_KEY"):
        logger.warning("no WANDB_API_KEY: not reporting to W&B (the metrics are in the bucket all the same)")
        trackers.remove("wandb")
    return trackers


def hide_wandb() -> None:
    """Keep transformers and TRL from importing wandb, which takes a fifth of all import time, at each restart.

    They import it wherever it is installed. `trainer.metrics.trackers` brings it back where it reports to W&B. None in
    `sys.modules` is Python's own mark for a module that isn't there.
    """
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # typeshed leaves the None out


def tracker_links() -> list[str]:
    """Where people look at this run: the W&B page, if W&B is in use here. Imports nothing for it."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    url = getattr(run, "url", None)
    return [str(url)] if url else []


class TensorBoardMirror:
    """Puts TensorBoard's event files into the bucket: a VM's disk is gone with the VM.

    Each attempt writes files of its own; TensorBoard shows a folder of them as one curve.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._sent: dict[Path, int] = {}

    def sync(self) -> None:
        """Send the files that have grown."""
        for path in sorted(self._folder.rglob("*tfevents*")):
            size_bytes = path.stat().st_size
            if self._sent.get(path) != size_bytes:
                self._store.put_file(f"tensorboard/{path.name}", path)
                self._sent[path] = size_bytes
