"""A recipe made small keeps what decides how it is saved and resumed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from trainer.config.recipe import load_recipe
from trainer.config.rehearsal import EVAL_ROWS, MAX_LENGTH, ROWS, STEPS, rehearsal_of

RECIPES = sorted(path.stem for path in Path(str(files("trainer") / "recipes")).glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_can_be_rehearsed(name: str) -> None:
    recipe = load_recipe(name)
    small = rehearsal_of(recipe, Path("/models/small"))
    assert small.model.name == "/models/small"
    assert small.training.max_steps is not None
    assert small.training.max_steps <= STEPS
    assert (small.dataset.rows or 0) <= ROWS
    assert small.dataset.eval_rows <= EVAL_ROWS
    assert small.dpo.max_length <= MAX_LENGTH
    assert small.hardware.gpus is None
    assert (small.hub, small.tracking) == (None, ())
    assert small.saves.every_steps
    assert not small.saves.auto


@pytest.mark.parametrize("name", RECIPES)
def test_what_decides_the_state_stays(name: str) -> None:
    recipe = load_recipe(name)
    small = rehearsal_of(recipe, Path("/models/small"))
    assert (small.method, small.zero) == (recipe.method, recipe.zero)
    assert (small.dpo.loss, small.dpo.beta, small.dpo.reference) == (
        recipe.dpo.loss, recipe.dpo.beta, recipe.dpo.reference,
    )  # fmt: skip
    same = ("optimizer", "learning_rate", "schedule", "bf16", "seed", "gradient_checkpointing", "eval_every_epoch")
    assert {key: getattr(small.training, key) for key in same} == {key: getattr(recipe.training, key) for key in same}
    assert (small.lora is None) == (recipe.lora is None)
    if small.lora and recipe.lora:
        assert small.lora.target_modules == recipe.lora.target_modules
        assert (small.lora.quantize, small.lora.dropout) == (recipe.lora.quantize, recipe.lora.dropout)
    assert small.dataset.sources[0].name == recipe.dataset.sources[0].name
    assert (small.dataset.system, small.dataset.columns) == (recipe.dataset.system, recipe.dataset.columns)


def test_a_short_prompt_leaves_room_for_the_answer() -> None:
    recipe = load_recipe("tiny-dpo")
    short = recipe.model_copy(update={"dpo": recipe.dpo.model_copy(update={"max_length": 40, "max_prompt_length": 39})})
    assert rehearsal_of(short, Path("/m")).dpo.max_prompt_length == 20
