"""What has to be equal for an exact resume, compared by name."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from checkpoints.errors import CorruptCheckpoint, NotExact
from checkpoints.head import Head
from checkpoints.restore import load_manifest
from checkpoints.store import Store
from trainer.recipe import Recipe

LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft")


def fingerprint(
    recipe: Recipe, *, world_size: int, global_batch: int, device: str, attention: str, dataset: str
) -> dict[str, Any]:
    """What decides the numbers, by name."""
    return {
        "recipe": recipe.identity,
        "dataset": dataset,
        "global_batch": global_batch,
        "world_size": world_size,
        "offload": recipe.zero.model_dump(mode="json", include={"offload_optimizer", "offload_parameters"})
        if recipe.zero
        else None,
        "device": device,
        "attention": attention,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def saved_fingerprint(store: Store, head: Head | None) -> dict[str, Any] | None:
    """That of the newest checkpoint which can be read; an older one says the same. None for a new run."""
    for commit in head.commits if head else ():
        try:
            return dict(load_manifest(store, commit).fingerprint)
        except CorruptCheckpoint:
            continue
    return None


def check_fingerprint(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Why a resume isn't exact, one reason each; none = it is.

    Another recipe, data set or batch makes another run: raises `NotExact` naming the field. Another number of
    processes, offload setting, device, attention or library version goes on with the same state and rounds
    otherwise from here on.
    """
    for field in ("recipe", "dataset", "global_batch"):
        if saved.get(field) != mine[field]:
            raise NotExact(
                f"the checkpoint belongs to another run: "
                f"{field} was {_short(saved.get(field))}, is {_short(mine[field])}",
                "use the same recipe and data, or start a new run with another --name",
            )
    return [
        f"{field} was {_short(saved.get(field))}, is {_short(mine[field])}"
        for field in ("world_size", "offload", "device", "attention", "versions")
        if saved.get(field) != mine[field]
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
