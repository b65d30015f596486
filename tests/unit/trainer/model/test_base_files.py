"""Base models that are cut off, or don't fit the recipe, are refused before anything is loaded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import UserError
from trainer.config.recipe import Lora, Recipe, load_recipe
from trainer.model.base_files import check_config, check_files, check_local_base

CONFIG = {"model_type": "llama", "vocab_size": 259, "pad_token_id": 0, "max_position_embeddings": 1024}


def safetensors(shapes: dict[str, int]) -> bytes:
    header, offset = {}, 0
    for name, size in shapes.items():
        header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [offset, offset + 4 * size]}
        offset += 4 * size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(offset)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(safetensors({"a": 8, "b": 8}))
    return tmp_path


def recipe_of(folder: Path | str, **changes: Any) -> Recipe:
    recipe = load_recipe("tiny-dpo-lora")
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(folder)}), **changes})


def test_a_whole_model_passes(folder: Path) -> None:
    check_local_base(recipe_of(folder))
    check_local_base(recipe_of("someone/on-the-hub"))
    check_local_base(load_recipe("tiny-dpo"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        ("model.safetensors", safetensors({"a": 8})[:-3], "is truncated: it has 99 bytes, but its header gives 102"),
        ("model.safetensors", safetensors({"a": 8}) + b"x", "is longer than its tensors"),
        ("model.safetensors", safetensors({"a": 8})[:20], "is not a complete safetensors file"),
        ("model.safetensors", b"", "is not a complete safetensors file"),
        ("model.safetensors", b"<html>not found</html>", "is not a complete safetensors file"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "is not a complete safetensors file"),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(50), "is truncated, or not a file of torch.save"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
            "lacks model-00001",
        ),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "is not a JSON object"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        check_local_base(recipe_of(folder))
    assert name in caught.value.message
    assert caught.value.exit_code == 2


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_local_base(recipe_of(tmp_path))


def test_other_files_may_lie_beside_the_weights(folder: Path) -> None:
    (folder / "notes.txt").write_text("version 2")
    (folder / "sub").mkdir()
    check_files(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": 259}, r"pad_token_id 259 is outside the embedding's 259 rows \(vocab_size\)"),
        ({"pad_token_id": -260}, "pad_token_id -260"),
        ({"eos_token_id": 259}, r"eos_token_id 259 is outside the embedding's 259 rows"),
        ({"eos_token_id": [2, 300]}, "eos_token_id 300"),
        ({"max_position_embeddings": 64}, r"dpo.max_length 256 is more than the model's 64 positions \(max_position"),
        ({"n_positions": 64}, r"64 positions \(n_positions\)"),
        ({"text_config": {"max_position_embeddings": 64}}, "64 positions"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_config({**CONFIG, **changes}, recipe_of("x"), "x/config.json")
    assert caught.value.message.startswith("x/config.json: ")


@pytest.mark.parametrize(
    ("output", "tied", "passes"),
    [
        (b"1" * 32, True, True),
        (b"2" * 32, False, True),
        (b"2" * 32, True, False),
        (b"1" * 28, True, False),
        (None, True, True),
    ],
)
def test_tied_embeddings_that_differ(folder: Path, output: bytes | None, tied: bool, passes: bool) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": tied}))
    tensors = {"model.embed_tokens.weight": b"1" * 32, **({} if output is None else {"lm_head.weight": output})}
    head = safetensors({name: len(data) // 4 for name, data in tensors.items()})
    data = b"".join(tensors.values())
    (folder / "model.safetensors").write_bytes(head[: -len(data)] + data)
    with contextlib.nullcontext() if passes else pytest.raises(UserError, match=r"embed_tokens\.weight, lm_head"):
        check_local_base(recipe_of(folder))


@pytest.mark.parametrize(
    "changes", [{"pad_token_id": -1}, {"pad_token_id": None}, {"eos_token_id": 258}, {"alibi": True, "n_positions": 64}]
)
def test_a_config_that_fits(changes: dict[str, Any]) -> None:
    check_config({**CONFIG, **changes}, recipe_of("x"), "x/config.json")


def test_adapters_of_tied_embeddings() -> None:
    recipe = recipe_of("x", lora=Lora(target_modules=("q_proj", "lm_head")))
    check_config({**CONFIG, "tie_word_embeddings": False}, recipe, "x")
    with pytest.raises(UserError, match="adapters of lm_head can't be merged"):
        check_config({**CONFIG, "tie_word_embeddings": True}, recipe, "x")
