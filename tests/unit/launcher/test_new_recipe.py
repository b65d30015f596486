"""A new recipe is a recipe, whatever its file, model and columns are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from launcher.new_recipe import UNKNOWN_HOURS, Choices, Hours, guess_columns, recipe_text
from trainer.config.recipe import Recipe, load_recipe

CHOICES = Choices(
    name="mine", data="pairs.jsonl", model="org/model-7b", method="lora", gpus="A100:8", columns={}, eval_rows=100
)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_both_methods_are_recipes(method: str, tmp_path: Path) -> None:
    choices = CHOICES._replace(method=method)  # type: ignore[arg-type]
    (tmp_path / "mine.yaml").write_text(recipe_text(choices, Hours((2.0, 8.0))))
    (tmp_path / "pairs.jsonl").write_text("{}")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.method == method
    assert recipe.dataset.name == str(tmp_path / "pairs.jsonl")
    assert recipe.hardware.hours == 4.0
    assert (recipe.zero is not None, recipe.lora is not None) == (method == "full", method == "lora")


def test_an_estimate_is_marked_and_a_placeholder_too() -> None:
    assert "an estimate: 2 to 8 h" in recipe_text(CHOICES, Hours((2.0, 8.0)))
    text = recipe_text(CHOICES, Hours(None))
    assert "a placeholder" in text
    assert Recipe.model_validate(YAML(typ="safe").load(text)).hardware.hours == UNKNOWN_HOURS


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text.strip() == text)


@given(data=NAMES, model=NAMES, prompt=NAMES, chosen=NAMES, rejected=NAMES)
def test_any_name_comes_back_as_it_was(data: str, model: str, prompt: str, chosen: str, rejected: str) -> None:
    columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    choices = CHOICES._replace(data=data, model=model, columns=columns)
    read_back = YAML(typ="safe").load(recipe_text(choices, Hours(None)))
    assert (read_back["dataset"]["name"], read_back["model"]["name"]) == (data, model)
    assert read_back["dataset"]["columns"] == columns


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["prompt", "chosen", "rejected", "score"], {}),
        (["instruction", "chosen_response", "rejected_response"], {}),
        (["chosen", "rejected"], {}),
        (["Question", "Good", "Bad"], {"prompt": "Question", "chosen": "Good", "rejected": "Bad"}),
        (["better", "worse"], {"chosen": "better", "rejected": "worse"}),
        (["text", "label"], None),
        (["prompt", "chosen"], None),
        ([], None),
    ],
)
def test_columns_are_guessed_by_the_names_that_public_sets_use(
    names: list[str], columns: dict[str, str] | None
) -> None:
    assert guess_columns(names) == columns
