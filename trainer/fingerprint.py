"""What has to be equal for an exact resume, compared by name."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from checkpoints.errors import NotExact
from trainer.recipe import Recipe

logger = logging.getLogger(__name__)


LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft")


def fingerprint(recipe: Recipe, *, world_size: int, device: str, attention: str, dataset: str) -> dict[str, Any]:
    """What has to be equal for an exact resume, by name."""
    return {
        "recipe": recipe.identity,
        "world_size": world_size,
        "device": device,
        "attention": attention,
        "dataset": dataset,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def check_fingerprint(saved: dict[str, Any], mine: dict[str, Any]) -> None:
    """Refuse or warn where an exact resume isn't possible.

    Another recipe, world size or data set is refused; another library version or GPU model is said aloud and
    recorded by the next manifest. Raises `NotExact` naming the field.
    """
    for field in ("recipe", "world_size", "dataset"):
        if saved.get(field) != mine[field]:
            raise NotExact(
                f"the checkpoint belongs to another run: "
                f"{field} was {_short(saved.get(field))}, is {_short(mine[field])}",
                "use the same recipe, data and number of processes, or start a new run with another --name",
            )
    for field in ("device", "attention", "versions"):
        if saved.get(field) != mine[field]:
            logger.warning("not exact: %s was %s, is %s", field, saved.get(field), mine[field])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
