"""The checkpoint engine between DeepSpeed and `checkpoints`.

DeepSpeed 0.19.8 has no configuration key for a custom engine, but its engine module looks up the factory by name when
it is built, so `install` replaces that. Our engine keeps references instead of writing files; the saver copies them
into a snapshot before the next optimizer step changes them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.runtime.engine
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from checkpoints.errors import UserError
from checkpoints.util.keys import check_key

Whole = Callable[[], dict[str, torch.Tensor]]
_SCALERS = {scaler.__name__: scaler for scaler in (LossScaler, DynamicLossScaler)}


class BucketEngine(CheckpointEngine):  # type: ignore[misc]  # deepspeed has no types
    """Collects what DeepSpeed saves, and returns what was restored. Nothing goes through a file or a pickle.

    Paths are reduced to `<tag>/<file>`, the part that is the same on every machine. `save` keeps references: take the
    snapshot before the next optimizer step.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self.name = "notus"
        self.saved: dict[str, Any] = {}
        self.restored: dict[str, Any] = {}
        self._whole: Whole | None = None

    def create(self, info: CheckpointCommitInfo) -> None:
        self.saved = {}

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        self.saved[_name(path)] = plain_state(state_dict)

    def load(self, path: str, map_location: object = None) -> dict[str, Any]:
        return revive_state(self.restored[_name(path)])

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True  # the real commit comes after RNG, scheduler and trainer state are captured too

    def preserves_storage_sharing(self) -> bool:
        return False  # so that DeepSpeed need not clone every tensor first

    def stage(self, files: dict[str, Any], folder: Path, whole: Whole | None = None) -> Path:
        """Make `engine.load_checkpoint(folder)` find `files`: DeepSpeed globs for names before it loads them.

        The files in `folder` are empty; the contents come from `load`. There may be several tags; the last one becomes
        `latest`. `whole` is needed for loads without the optimizer's state: under ZeRO-3 DeepSpeed then needs all
        ranks' weights, and would read the files itself.
        """
        self.restored = files
        self._whole = whole
        for name in files:
            stub = folder / check_key(name)  # it comes from a bucket
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.touch()
        (folder / "latest").write_text(list(files)[-1].split("/")[0])
        return folder

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights of all ranks, by name."""
        if self._whole is None:
            raise UserError(
                "load_optimizer_states=False needs the weights of all ranks",
                "give `BucketEngine.stage` a function for them, for example from checkpoints.restore.consolidate",
            )
        return self._whole()


def install() -> BucketEngine:
    """Make DeepSpeed engines that are built from now on use one shared `BucketEngine`, and return it.

    The reference model's engine gets it too, but never saves.
    """
    engine = BucketEngine()

    def create_checkpoint_engine(*args: object, **kwargs: object) -> BucketEngine:
        return engine

    def whole_weights(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        return engine.whole_weights()

    deepspeed.runtime.engine.create_checkpoint_engine = create_checkpoint_engine
    deepspeed.runtime.engine.get_fp32_state_dict_from_zero_checkpoint = whole_weights
    return engine


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed state dict with its one live object, the loss scaler, as plain data, and its stage as a number."""
    optimizer = state.get("optimizer_state_dict")
    if not isinstance(optimizer, dict) or "loss_scaler" not in optimizer:
        return state
    scaler = optimizer["loss_scaler"]
    if type(scaler).__name__ not in _SCALERS:
        raise TypeError(f"unknown DeepSpeed loss scaler {type(scaler).__qualname__}")
    data = {"class": type(scaler).__name__, "attributes": vars(scaler)}
    numbers = {name: value.value for name, value in optimizer.items() if isinstance(value, enum.Enum)}
    return {**state, "optimizer_state_dict": {**optimizer, **numbers, "loss_scaler": data}}


def revive_state(state: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `plain_state`."""
    optimizer = state.get("optimizer_state_dict")
    if not isinstance(optimizer, dict) or "loss_scaler" not in optimizer:
        return state
    data = optimizer["loss_scaler"]
    kind = _SCALERS[data["class"]]
    scaler = kind.__new__(kind)
    vars(scaler).update(data["attributes"])
    return {**state, "optimizer_state_dict": {**optimizer, "loss_scaler": scaler}}


def _name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])
