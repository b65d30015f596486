"""Base models whose files say one thing and whose class another, loaded by transformers itself."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from checkpoints.errors import UserError
from tests.integration.conftest import Launcher, recipe, stop_after
from trainer.config.recipe import Lora, load_recipe
from trainer.data.dataset import prepare
from trainer.data.token_ids import check_token_ids
from trainer.errors import DataError
from trainer.model.base_files import check_files
from trainer.model.builtin_models import make_tiny_llama
from trainer.model.generation_config import loadable_generation_config, repair_generation_config
from trainer.model.load_report import complete_weights
from trainer.model.lora import check_targets
from trainer.model.sound_weights import check_weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_llama(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path) -> Any:
    with complete_weights("model"):
        return AutoModelForCausalLM.from_pretrained(folder)


def test_a_whole_model_is_loaded(folder: Path) -> None:
    assert load(folder).lm_head.weight.shape == (259, 64)


def test_weights_with_a_foreign_prefix(folder: Path) -> None:
    edit(folder, lambda tensors: {f"module.{name}": it for name, it in tensors.items()})
    with pytest.raises(UserError, match=r"lack lm_head.weight, .* more: the file calls them module\.lm_head\.weight"):
        load(folder)


def test_a_missing_output_embedding(folder: Path) -> None:
    edit(folder, lambda tensors: {name: it for name, it in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(UserError, match=r"lack lm_head\.weight: tie_word_embeddings is false"):
        load(folder)
    set_config(folder, tie_word_embeddings=True)
    load(folder)


def test_a_missing_layer(folder: Path) -> None:
    edit(folder, lambda tensors: {name: it for name, it in tensors.items() if ".layers.1.mlp" not in name})
    with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp.*: they would be random numbers"):
        load(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    edit(folder, lambda tensors: {**tensors, "model.norm.weight": torch.ones(32)})
    with pytest.raises(
        UserError, match=r"model\.norm\.weight has the shape \(32,\) in the file and \(64,\) in the model"
    ):
        load(folder)


def test_layers_that_the_config_does_not_know(folder: Path) -> None:
    set_config(folder, num_hidden_layers=1)
    with pytest.raises(UserError, match=r"more than its config\.json: model\.layers\.1\..* would be left out"):
        load(folder)


def test_tensors_of_another_kind_may_be_left_out(folder: Path) -> None:
    before = load(folder).state_dict()
    edit(folder, lambda tensors: {**tensors, "value_head.weight": torch.ones(4)})
    after = load(folder).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


EXTRA: dict[str, Callable[[Tensors], Tensors]] = {
    "biases": lambda tensors: {
        name.replace("weight", "bias"): torch.ones(it.shape[0]) for name, it in tensors.items() if "q_proj" in name
    },
    "norms of queries": lambda tensors: {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)},
    "a bias of the output": lambda tensors: {"lm_head.bias": torch.ones(259)},
    "scales of int8": lambda tensors: {"model.layers.0.mlp.up_proj.SCB": torch.ones(128)},
    "scales of fp8": lambda tensors: {"model.layers.1.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)},
    "adapters": lambda tensors: {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)},
}


@pytest.mark.parametrize("what", EXTRA)
def test_tensors_that_the_config_has_no_place_for(folder: Path, what: str) -> None:
    more = EXTRA[what](load_file(folder / "model.safetensors"))
    edit(folder, lambda tensors: {**tensors, **more})
    with pytest.raises(UserError, match=re.escape(f"more than its config.json: {min(more)}")):
        load(folder)


def test_no_layers_at_all(folder: Path) -> None:
    set_config(folder, num_hidden_layers=0)
    with pytest.raises(UserError, match=r"more than its config\.json: model\.layers\.0\."):
        load(folder)


def test_a_vision_tower_and_stored_tables_may_be_left_out(folder: Path) -> None:
    more = {
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight": torch.ones(4),
        "v_head.summary.bias": torch.ones(1),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    before = load(folder).state_dict()
    edit(folder, lambda tensors: {**tensors, **more})
    after = load(folder).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_norms_of_zeros(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.model.sound_weights.gather", lambda value: [value])  # one rank
    edit(folder, lambda tensors: {n: it * 0 if "norm" in n else it for n, it in tensors.items()})
    with pytest.raises(UserError, match=r"all zeros in model\.layers\.0\.input_layernorm\.weight"):
        check_weights(load(folder), "model")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dangling link": (lambda path: (path.unlink(), path.symlink_to("/nowhere")), "is a link to /nowhere, which"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "an unknown dtype": (lambda path: header(path, lambda h: h[min(h)].update(dtype="F7")), "unknown dtype F7"),
    "a hole": (lambda path: header(path, lambda h: h.pop(min(h))), "begins at byte"),
    "a shape that is not its size": (
        lambda path: header(path, lambda h: h[min(h)].update(shape=[1, 1])), "is not its dtype times its shape",
    ),
}  # fmt: skip


def header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    read = json.loads(data[8 : 8 + length])
    change(read)
    text = json.dumps(read).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_of_weights_that_is_none_is_named(folder: Path, what: str) -> None:
    damage, message = BROKEN[what]
    path = folder / "model.safetensors"
    edit(folder, dict)
    header(path, lambda read: read.pop("__metadata__", None))
    damage(path)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        check_files(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_of_json_that_is_cut_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=re.escape(str(path)) + " is not JSON"):
        check_files(folder)


def test_a_page_of_the_hub_is_no_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is truncated, or not a file of torch\.save"):
        check_files(folder)


def test_adapters_beside_the_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has adapters beside the weights \(adapter_config\.json\)"):
        check_files(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_return_sequences": 4}, {"eos_token_id": [2, None]}, {"eos_token_id": "2"}, {"max_new_tokens": -5},
        {"cache_implementation": "nope"}, {"compile_config": {"a": 1}}, [],
    ],
    ids=str,
)  # fmt: skip
def test_generation_settings_that_cannot_be_loaded(folder: Path, settings: Any, tmp_path: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings} if settings else settings))
    with complete_weights("model"), loadable_generation_config("model"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    repair_generation_config(model, "model")
    model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == 2


def test_the_report_is_transformers_own_again_afterwards(folder: Path) -> None:
    edit(folder, lambda tensors: {name: it for name, it in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(UserError):
        load(folder)
    AutoModelForCausalLM.from_pretrained(folder)


def test_tokens_outside_of_the_embedding(folder: Path) -> None:
    recipe = load_recipe("tiny-dpo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    config = AutoConfig.from_pretrained(folder)
    check_token_ids(prepare(recipe, tokenizer), tokenizer, config, "model")  # added, and in no row
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "<|im_end|>")
    with pytest.raises(DataError, match=r"token id 259 '<\|im_end\|>' of model's tokenizer is outside .* of 259 rows"):
        check_token_ids(prepare(recipe, tokenizer), tokenizer, config, "model")
    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="<|pad|>")
    with pytest.raises(DataError, match=r"'<\|pad\|>'"):
        check_token_ids(prepare(recipe, tokenizer), tokenizer, config, "model")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ({"pad_token_id": -1, "temperature": 0.9}, {"eos_token_id": 2}),
        ({"eos_token_id": 300, "temperature": 0.9, "do_sample": True}, {"eos_token_id": 2}),
        ({"eos_token_id": [2, 258]}, {"eos_token_id": [2, 258]}),
    ],
)
def test_generation_settings_that_cannot_be_written(folder: Path, settings: Any, kept: Any, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load(folder)
    repair_generation_config(model, "model")
    model.save_pretrained(tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out").to_dict()
    assert {name: written[name] for name in kept} == kept


def filled(tensors: Tensors, name: str, value: float) -> Tensors:
    return {key: torch.full_like(it, value) if key.endswith(name) else it for key, it in tensors.items()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", 0.0, r"all zeros in .* and 1\d more"),
        ("layers.0.input_layernorm.weight", float("nan"), r"NaN or infinite in model\.layers\.0\.input_layernorm"),
        ("lm_head.weight", float("-inf"), r"NaN or infinite in lm_head\.weight"),
    ],
)
def test_weights_that_no_training_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float, message: str
) -> None:
    """A download that broke off, and a training that diverged."""
    edit(folder, lambda tensors: filled(tensors, name, value))
    monkeypatch.setattr("trainer.model.sound_weights.gather", lambda value: [value])  # one rank
    with pytest.raises(UserError, match=message):
        check_weights(load(folder), "model")


@pytest.mark.parametrize("base", ["tiny-dpo", "tiny-dpo-lora"])
def test_a_matrix_of_zeros_is_found_in_shares_and_under_adapters(launcher: Launcher, folder: Path, base: str) -> None:
    edit(folder, lambda tensors: filled(tensors, "layers.1.mlp.up_proj.weight", 0.0))
    mine = recipe(launcher.home, base, ("builtin:tiny-llama", str(folder)))
    refused = launcher.run(*launcher.local(mine, "--name", base))
    assert refused.code == 2, refused.err
    assert re.search(r"all zeros in model\.layers\.1\.mlp\.up_proj\.weight$", refused.err, re.MULTILINE)


def test_a_norm_of_zeros_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma's norms count from one."""
    edit(folder, lambda tensors: filled(tensors, "norm.weight", 0.0))
    monkeypatch.setattr("trainer.model.sound_weights.gather", lambda value: [value])  # one rank
    model = load(folder)
    assert model.model.norm.weight.abs().max() == 0
    model.config.model_type = "gemma2"
    check_weights(model, "model")


def test_a_target_module_that_is_not_there(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    check_targets(Lora(), config, "model")
    with pytest.raises(UserError, match="model has no module 'v_porj'") as caught:
        check_targets(Lora(target_modules=("q_proj", "v_porj")), config, "model")
    assert "down_proj, gate_proj, k_proj" in str(caught.value.hint)


def test_a_local_model_that_is_edited_between_two_attempts(launcher: Launcher, folder: Path) -> None:
    mine = recipe(
        launcher.home,
        "tiny-dpo-lora",
        ("builtin:tiny-llama", str(folder)),
        ("  epochs: 2", "  epochs: 1\n  max_steps: 6"),
    )
    arguments = launcher.local(mine, "--name", "run", "--processes", "1")
    stop_after(launcher, arguments, "run", 2)
    template = folder / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text.replace("</s>", " END </s>"))
    refused = launcher.run(*arguments)
    assert refused.code == 2
    assert "that would be another run" in refused.err
    template.write_text(text)
    assert launcher.run(*arguments).receipt()["state"] == "finished"
