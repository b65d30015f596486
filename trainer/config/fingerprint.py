"""What must be equal for an exact resume, compared by name."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from fnmatch import fnmatch
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
"""A change in one of these makes it another run."""

ANOTHER_ROUNDING = {
    "world_size": "sums over processes are added up in another order",
    "offload": "CPU and GPU round differently",
    "device": "another kind of device rounds differently",
    "attention": "another attention kernel rounds differently",
    "determinism": "kernels may add up in another order",
    "versions": "another version may compute in another order",
}
"""A change in one of these keeps the state, but rounding differs from then on."""

Base = Mapping[str, str | None]
"""A base model. `content`: a hash of its weights; `weights`: a hash of samples of them; `commit`: on the Hub; and
hashes of its other files by name. None if unknown. See `trainer.model.base_identity`."""
OF_WEIGHTS = ("content", "weights", "commit")
"""The most reliable first."""
FILES_ADDED_LATER = ("*.model", "bpe.codes", "additional_chat_templates/*.jinja")
"""Files of tokenizers that older runs don't know, so that they say nothing of them."""
CPU = "cpu"

LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft", "flash-attn", "bitsandbytes")
ADDED_LATER = ("tokenizers", "datasets")
"""Added later: fingerprints of older runs lack them."""
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
    """What determines the numbers, by name. `code`: a hash of our code."""
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
    """A CPU as a fingerprint's `device`: its model, and the instruction set that torch uses there (its capability).

    oneDNN and MKL choose their kernels by more than the capability: by vendor, bf16 instructions and cache sizes.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{CPU} {models[0] if models else platform.machine()} ({capability})"


def is_cpu(device: str) -> bool:
    """Is this `device` of a fingerprint a CPU?"""
    return device.split(" ")[0] == CPU


def _versions() -> dict[str, str]:
    """Versions of the libraries that are installed."""
    found = {}
    for name in (*LIBRARIES, *ADDED_LATER):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def saved_fingerprint(store: Store, head: Head | None) -> dict[str, Any] | None:
    """The fingerprint of the newest readable checkpoint; older ones have the same. None for a new run."""
    for commit in head.commits if head else ():
        try:
            return dict(load_manifest(store, commit).fingerprint)
        except CorruptCheckpoint:
            continue
    return None


def base_revision(base: Base | None, wanted: str | None) -> str | None:
    """The base model's revision for a run: the commit that it began with, even if there are later ones.

    `base`: the run's, None if there is none yet; `wanted`: the recipe's `model.revision`, possibly a branch, or None.
    """
    return (base or {}).get("commit") or wanted


def _is_added_later(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in FILES_ADDED_LATER)


def base_change(old: Base | None, new: Base | None) -> Difference | None:
    """The first change, in the weights by what both have, then in the other files; None if nothing can be compared."""
    old, new = old or {}, new or {}
    both = next((key for key in OF_WEIGHTS if old.get(key) and new.get(key)), None)
    if both is not None and old[both] != new[both]:
        return Difference(f"base.{both}", old[both], new[both])
    before, now = ({name: value for name, value in base.items() if name not in OF_WEIGHTS} for base in (old, new))
    now = {name: value for name, value in now.items() if name in before or not _is_added_later(name)}
    return next(differences(before, now, "base"), None) if before and now else None


def check_fingerprint(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """The reasons why a resume isn't exact; empty if it is. Each names the field and its meaning.

    Raises `NotExact` if it would be another run.
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
    if saved.get("device") == CPU and is_cpu(mine["device"]):  # an older run: which CPU is unknown
        saved = {**saved, "device": mine["device"]}
    return [
        f"{changed} ({meaning})"
        for field, meaning in ANOTHER_ROUNDING.items()
        for changed in differences(saved.get(field), mine[field], field)
    ]


def _known_to(saved: dict[str, Any], versions: dict[str, str]) -> dict[str, str]:
    """The versions, without those that an older run did not record."""
    recorded = saved.get("versions") or {}
    return {name: one for name, one in versions.items() if name in recorded or name not in (*ADDED_LATER, OWN_CODE)}
