"""A recipe made small enough to rehearse on any machine: same method, loss, optimizer and data, fewer and shorter rows.

Pure. The model's half is `trainer.model.miniature`.
"""

from __future__ import annotations

from pathlib import Path

from trainer.config.recipe import Recipe

STEPS, SAVE_EVERY, EVALUATE_EVERY = 24, 5, 8
ROWS, EVAL_ROWS = 384, 16
MAX_LENGTH, MAX_PROMPT_LENGTH = 256, 128
CPU_PROCESSES = 2


def rehearsal_of(recipe: Recipe, model: Path) -> Recipe:
    """Return the recipe with `model`, a folder, in place of its own, and everything that takes time made small.

    What decides how a run is saved and resumed stays: method, ZeRO and offload, adapters, loss, reference, optimizer,
    schedule, accumulation, evaluation, precision, seeds, data and its columns.
    """
    changed = {
        "name": f"{recipe.name[:40].rstrip('-')}-drill",
        "model": {**recipe.model.model_dump(), "name": str(model), "revision": None},
        "dataset": {
            **recipe.dataset.model_dump(),
            "rows": min(recipe.dataset.rows or ROWS, ROWS),
            "eval_rows": min(recipe.dataset.eval_rows, EVAL_ROWS),
            "workers": 1,
        },
        "dpo": {
            **recipe.dpo.model_dump(),
            "max_length": min(recipe.dpo.max_length, MAX_LENGTH),
            "max_prompt_length": min(recipe.dpo.max_prompt_length, MAX_PROMPT_LENGTH, recipe.dpo.max_length // 2),
        },
        "training": _training(recipe),
        "lora": {**recipe.lora.model_dump(), "rank": min(recipe.lora.rank, 8)} if recipe.lora else None,
        "saves": {
            **recipe.saves.model_dump(),
            "auto": False,
            "every_steps": SAVE_EVERY,
            "every_minutes": None,
            "keep_every_steps": None,
        },
        "tracking": (),
        "hub": None,
        "hardware": {"gpus": None, "cpu_processes": CPU_PROCESSES, "hours": 0.02},
    }
    return Recipe.model_validate({**recipe.model_dump(), **changed})


def _training(recipe: Recipe) -> dict[str, object]:
    training = recipe.training
    return {
        **training.model_dump(),
        "max_steps": min(training.max_steps or STEPS, STEPS),
        "per_device_batch": min(training.per_device_batch, 2),
        "per_device_eval_batch": min(training.per_device_eval_batch, 4),
        "accumulation": min(training.accumulation, 2),
        "eval_every_steps": min(training.eval_every_steps, EVALUATE_EVERY) if training.eval_every_steps else None,
        "log_every_steps": 4,
    }
