"""Chooses the offload if the recipe has `auto`: what the run began with, else the least that fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config.memory_estimate import IN_ORDER, Offload, fit, runs_with
from trainer.config.recipe import Recipe

MOST = IN_ORDER[-1]


def settle_offload(
    recipe: Recipe, *, gpu_gib: float | None, count: int, saved: Mapping[str, Any] | None
) -> tuple[Recipe, str]:
    """The recipe with `auto` replaced, and why, for the log; '' if there was nothing to decide.

    Args:
        recipe: any.
        gpu_gib: memory of the smallest GPU; None on a CPU, where nothing is offloaded.
        count: GPUs of the attempt.
        saved: fingerprint of the checkpoint to resume from. Its offload is kept while it fits: another one rounds
            differently, and the run would no longer be exact.
    """
    zero = recipe.zero
    if zero is None or "auto" not in (zero.offload_optimizer, zero.offload_parameters):
        return recipe, ""
    if gpu_gib is None:
        return _with(recipe, Offload(False, False)), "no GPU here"
    begun = _saved_offload(saved)
    if begun is not None and runs_with(recipe, gpu_gib, count, begun):
        return _with(recipe, begun), "as the run began"
    found = fit(recipe, gpu_gib, count)
    return _with(recipe, found.offload or MOST), found.reason


def _saved_offload(saved: Mapping[str, Any] | None) -> Offload | None:
    offload = (saved or {}).get("offload")
    if not isinstance(offload, Mapping):
        return None
    return Offload(offload.get("offload_optimizer") == "cpu", offload.get("offload_parameters") == "cpu")


def _with(recipe: Recipe, offload: Offload) -> Recipe:
    assert recipe.zero is not None
    chosen = {
        name: ("cpu" if on else "none")
        for name, on in (("offload_optimizer", offload.optimizer), ("offload_parameters", offload.parameters))
        if getattr(recipe.zero, name) == "auto"
    }
    return recipe.model_copy(update={"zero": recipe.zero.model_copy(update=chosen)})
