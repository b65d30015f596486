"""The hash of what a machine was given to run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from trainer.config.recipe import Recipe, load_recipe
from trainer.data import input_hash
from trainer.data.input_hash import inputs_digest

PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def given(folder: Path, pairs: str = PAIR, learning_rate: str = "5.0e-4") -> Recipe:
    """A recipe with data of its own in this folder."""
    folder.mkdir(exist_ok=True)
    text = files("trainer").joinpath("recipes/tiny-dpo.yaml").read_text()
    assert "builtin:tiny-preferences" in text
    assert "5.0e-4" in text
    text = text.replace("builtin:tiny-preferences", "pairs.jsonl").replace("5.0e-4", learning_rate)
    (folder / "recipe.yaml").write_text(text)
    (folder / "pairs.jsonl").write_text(pairs)
    return load_recipe(str(folder / "recipe.yaml"))


def test_it_is_the_same_on_every_machine(tmp_path: Path) -> None:
    assert inputs_digest(given(tmp_path / "ubuntu")) == inputs_digest(given(tmp_path / "gcpuser"))


def test_recipe_data_and_code_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        inputs_digest(given(tmp_path / "as-it-was")),
        inputs_digest(given(tmp_path / "data", pairs=PAIR.replace("b", "d"))),
        inputs_digest(given(tmp_path / "recipe", learning_rate="1.0e-4")),
    }
    monkeypatch.setattr(input_hash, "code_digest", lambda: "changed")
    found.add(inputs_digest(given(tmp_path / "code")))
    assert len(found) == 4
