"""Trackers: which ones work here, and what they leave on the local disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from checkpoints.storage.base import Store
from trainer.config.recipe import Recipe

logger = logging.getLogger(__name__)


def usable_trackers(recipe: Recipe, environment: Mapping[str, str]) -> list[str]:
    """The recipe's trackers that work here. Without a key W&B would prompt, and wait forever for an answer."""
    trackers: list[str] = list(recipe.tracking)
    offline = environment.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in trackers and not offline and not environment.get("WANDB_API_KEY"):
        logger.warning("no WANDB_API_KEY: not reporting to W&B (the metrics are in the bucket anyway)")
        trackers.remove("wandb")
    return trackers


def hide_wandb() -> None:
    """Keep transformers and TRL from importing wandb, which takes a fifth of the import time of each restart.

    They import it if it is installed. `trainer.metrics.trackers` restores it to report to W&B. None in `sys.modules` is
    Python's own marker for a missing module.
    """
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # typeshed leaves the None out


def tracker_links() -> list[str]:
    """Pages that show this run: W&B's, if W&B is in use here. Imports nothing."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    url = getattr(run, "url", None)
    return [str(url)] if url else []


class TensorBoardMirror:
    """Copies TensorBoard's event files to the bucket: a VM's disk is gone with the VM.

    Each attempt writes its own files; TensorBoard shows a folder of them as one curve.
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
