"""What has to be equal for an exact resume, compared by name."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints.commit.head import Head
from checkpoints.commit.load import load_manifest
from checkpoints.errors import CorruptCheckpoint, NotExact
from checkpoints.storage.base import Store
from checkpoints.util.diff import Difference, differences
from trainer.config.recipe import Recipe

ANOTHER_RUN = {
    "recipe": "it decides what is computed",
    "dataset": "a hash of its rows in order; the same step would train on other pairs",
    "tokens": "a hash of all token ids; another tokenizer or chat template, or another version of its library",
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
"""A base model. `content`: a hash of its weights, `weights`: of pieces of them; `commit`: on the Hub; by their names,
hashes of its other files. None where it isn't known. See `trainer.model.base_identity`."""
OF_WEIGHTS = ("content", "weights", "commit")
"""The surest first."""
CPU = "cpu"

LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft", "flash-attn", "bitsandbytes")
NOTED_LATER = ("tokenizers", "datasets")
"""Runs that were begun before these were noted say nothing of them."""
OWN_CODE = "notus-launch"


def fingerprint(
    recipe: Recipe,
    *,
    world_size: int,
    global_batch: int,
    device: str,
    attention: str,
    determinism: dict[str, str],
    dataset: str,
    tokens: str,
    base: Base,
    code: str,
) -> dict[str, Any]:
    """What decides the numbers, by name. `code`: a hash of ours."""
    return {
        "recipe": recipe.identity,
        "dataset": dataset,
        "tokens": tokens,
        "base": dict(base),
        "global_batch": global_batch,
        "world_size": world_size,
        "offload": recipe.zero.model_dump(mode="json", include={"offload_optimizer", "offload_parameters"})
        if recipe.zero
        else None,
        "device": device,
        "attention": attention,
        "determinism": determinism,
        "versions": {**_versions(), OWN_CODE: code},
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
    for name in (*LIBRARIES, *NOTED_LATER):
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
    """Of the weights by what both know, then of the other files; None also where nothing can be compared."""
    old, new = old or {}, new or {}
    both = next((key for key in OF_WEIGHTS if old.get(key) and new.get(key)), None)
    if both is not None and old[both] != new[both]:
        return Difference(f"base.{both}", old[both], new[both])
    before, now = ({name: told for name, told in base.items() if name not in OF_WEIGHTS} for base in (old, new))
    return next(differences(before, now, "base"), None) if before and now else None


def check_fingerprint(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Why a resume isn't exact, one reason each; none = it is. Each names the field and what it means.

    Raises `NotExact` where it would be another run.
    """
    mine = {**mine, "versions": _known_to(saved, mine["versions"])}
    for field, meaning in ANOTHER_RUN.items():
        if field == "tokens" and field not in saved:  # an older run
            continue
        if changed := next(differences(saved.get(field), mine[field], field), None):
            raise NotExact(
                f"that would be another run: {changed} ({meaning})",
                "use the same recipe and data, or start a new run with another --name",
            )
    if changed := base_change(saved.get("base"), mine.get("base")):
        raise NotExact(
            f"that would be another run: {changed} (the reference model of DPO, and what adapters add to)",
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


def _known_to(saved: dict[str, Any], versions: dict[str, str]) -> dict[str, str]:
    """Without those that an older run never noted."""
    noted = saved.get("versions") or {}
    return {name: told for name, told in versions.items() if name in noted or name not in (*NOTED_LATER, OWN_CODE)}
