"""The model card: every set with its share, and never where something lay on some machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from ruamel.yaml import YAML

from checkpoints.run_log.event_log import Event
from trainer.config.recipe import Dataset, Model, Source, load_recipe
from trainer.export.model_card import model_card
from trainer.main import new_record

ON_THE_HUB = {"commit": "c0ffee", "weights": "w"}
LOCAL = {"commit": None, "weights": "w"}


def card(
    model: Model, *sources: Source, base: Any = None, recipe: str = "notus-7b-dpo-lora", merged: bool = False
) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    first, *also = sources
    dataset = Dataset(**first.model_dump(), also=tuple(also))
    changed = load_recipe(recipe).model_copy(update={"model": model, "dataset": dataset})
    whole = model_card(new_record("mine", changed), [], base, merged=merged)
    _, metadata, text = whole.split("---\n", 2)
    return YAML(typ="safe").load(metadata), text


def test_every_set_is_told_with_its_share_and_revision() -> None:
    metadata, text = card(
        Model(name="me/base", revision="main"),
        Source(name="me/pairs", revision="abc"),
        Source(name="/home/me/secret/mine.jsonl", fraction=0.5),
        Source(name="you/more", fraction=0.25, split="test"),
        Source(name="builtin:tiny-preferences"),
        base=ON_THE_HUB,
    )
    assert metadata["base_model"] == "me/base"
    assert metadata["datasets"] == ["me/pairs", "you/more"]
    assert (
        "DPO of `me/base` (revision `c0ffee`) on `me/pairs` (revision `abc`), `mine.jsonl` (0.5 of its rows), "
        "`you/more` (0.25 of its rows, split `test`), `builtin:tiny-preferences` (adapters only)."
    ) in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("name", "base", "told"),
    [
        ("/home/secret/zephyr", LOCAL, "zephyr"),
        ("./secret/zephyr", None, "zephyr"),
        ("~/secret/zephyr", None, "zephyr"),
        ("secret/zephyr", LOCAL, "zephyr"),
        ("builtin:tiny-llama", LOCAL, "builtin:tiny-llama"),
        ("builtin:tiny-llama", None, "builtin:tiny-llama"),
    ],
)
def test_a_base_model_that_is_not_on_the_hub_is_no_metadata_and_no_path(name: str, base: Any, told: str) -> None:
    metadata, text = card(Model(name=name), Source(name="pairs.jsonl"), base=base)
    assert metadata.keys() == {"library_name", "tags"}
    assert f"DPO of `{told}` on `pairs.jsonl`" in text
    assert "secret" not in text


def test_an_older_run_without_a_noted_base_model_names_that_of_the_recipe() -> None:
    metadata, text = card(Model(name="me/base", revision="abc"), Source(name="me/pairs"))
    assert metadata["base_model"] == "me/base"
    assert "DPO of `me/base` (revision `abc`) on `me/pairs` (adapters only)" in text


@pytest.mark.parametrize(
    ("recipe", "merged", "library"),
    [
        ("notus-7b-dpo-lora", False, "peft"),
        ("notus-7b-dpo-lora", True, "transformers"),
        ("notus-7b-dpo", False, "transformers"),
    ],
)
def test_the_hub_is_told_what_loads_it(recipe: str, merged: bool, library: str) -> None:
    metadata, _ = card(Model(name="me/base"), Source(name="me/pairs"), recipe=recipe, merged=merged)
    assert metadata["library_name"] == library


def test_rows_that_were_left_out_are_counted_with_their_lines() -> None:
    left_out = [
        {"reason": "chosen is empty", "rows": 2, "where": ["pairs.jsonl:3", "pairs.jsonl:9"]},
        {"reason": "of an older run", "rows": 1},
    ]
    prepared = Event(
        time=datetime(2026, 1, 1, tzinfo=UTC), id="e", kind="data_prepared", attempt=1,
        data={"rows": 10, "train": 7, "left_out": left_out},
    )  # fmt: skip
    text = model_card(new_record("mine", load_recipe("notus-7b-dpo-lora")), [prepared], None, merged=False)
    assert (
        "Of its 10 rows these were left out: 2: chosen is empty (pairs.jsonl:3, pairs.jsonl:9); 1: of an older run."
    ) in text
