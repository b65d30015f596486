"""What has to be equal for an exact resume, compared by name."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints.differences import Difference, differences
from checkpoints.errors import CorruptCheckpoint, NotExact
from checkpoints.head import Head
from checkpoints.restore import load_manifest
from checkpoints.store import Store
from trainer.recipe import Recipe

ANOTHER_RUN = {
    "recipe": "it decides what is computed",
    "dataset": "a hash of its rows in order; the same step would train on other pairs",
    "global_batch": "pairs in an optimizer step",
}
"""A run that changes one of these is no longer that run."""

ANOTHER_ROUNDING = {
    "world_size": "sums over processes are added up in another order",
    "offload": "CPU and GPU round differently",
    "device": "another kind of device rounds differently",
    "attention": "another attention kernel rounds differently",
    "determinism": "kernels may add up in another order",
    "versions": "another version may compute in another order",
}
"""It goes on with the same state, and rounds otherwise from here on."""

Base = Mapping[str, str | None]
"""A base model. `weights`: a hash of them; `commit`: on the Hub. None where it isn't known. See `trainer.base`."""
CPU = "cpu"

LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft", "flash-attn", "bitsandbytes")


def fingerprint(
    recipe: Recipe,
    *,
    world_size: int,
    global_batch: int,
    device: str,
    attention: str,
    determinism: dict[str, str],
    dataset: str,
    base: Base,
) -> dict[str, Any]:
    """What decides the numbers, by name."""
    return {
        "recipe": recipe.identity,
        "dataset": dataset,
        "base": dict(base),
        "global_batch": global_batch,
        "world_size": world_size,
        "offload": recipe.zero.model_dump(mode="json", include={"offload_optimizer", "offload_parameters"})
        if recipe.zero
        else None,
        "device": device,
        "attention": attention,
        "determinism": determinism,
        "versions": _versions(),
    }


def cpu_device(capability: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A CPU as a fingerprint's `device`: its model, and the instructions that torch takes there (its capability).

    oneDNN and MKL choose their kernels by more than the capability: by the vendor, bf16 instructions, sizes of caches.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{CPU} {models[0] if models else platform.machine()} ({capability})"


def is_cpu(device: str) -> bool:
    """Is this `device` of a fingerprint a CPU?"""
    return device.split(" ")[0] == CPU


def _versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def saved_fingerprint(store: Store, head: Head | None) -> dict[str, Any] | None:
    """That of the newest checkpoint which can be read; an older one says the same. None for a new run."""
    for commit in head.commits if head else ():
        try:
            return dict(load_manifest(store, commit).fingerprint)
        except CorruptCheckpoint:
            continue
    return None


def base_revision(base: Base | None, wanted: str | None) -> str | None:
    """Which revision of the base model a run goes on with: the commit that it began with, whatever came later.

    `base`: of the run, None where there is none yet; `wanted`: the recipe's `model.revision`, maybe a branch, or None.
    """
    return (base or {}).get("commit") or wanted


def base_change(old: Base | None, new: Base | None) -> Difference | None:
    """By the weights where both know them, else by the commit; None also where nothing can be compared."""
    for key in ("weights", "commit"):
        was, now = (old or {}).get(key), (new or {}).get(key)
        if was and now:
            return Difference(f"base.{key}", was, now) if was != now else None
    return None


def check_fingerprint(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Why a resume isn't exact, one reason each; none = it is. Each names the field and what it means.

    Raises `NotExact` where it would be another run.
    """
    for field, meaning in ANOTHER_RUN.items():
        if changed := next(differences(saved.get(field), mine[field], field), None):
            raise NotExact(
                f"the checkpoint belongs to another run: {changed} ({meaning})",
                "use the same recipe and data, or start a new run with another --name",
            )
    if changed := base_change(saved.get("base"), mine.get("base")):
        raise NotExact(
            f"the checkpoint belongs to another run: {changed} (the reference model of DPO, and what adapters add to)",
            "bring back the base model that the run began with, or start a new run with another --name and a pinned "
            "model.revision",
        )
    if saved.get("device") == CPU and is_cpu(mine["device"]):  # an older run: it can't tell which
        saved = {**saved, "device": mine["device"]}
    return [
        f"{changed} ({meaning})"
        for field, meaning in ANOTHER_ROUNDING.items()
        for changed in differences(saved.get(field), mine[field], field)
    ]
