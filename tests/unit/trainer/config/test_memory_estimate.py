"""What a GPU has to hold, and which offload follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.config.gpu_types import GPU_TYPES, VISIBLE
from trainer.config.memory_estimate import GIB, Offload, fit, need_of, state_bytes
from trainer.config.model_shapes import MISTRAL_7B, shape_of
from trainer.config.offload import settle_offload
from trainer.config.recipe import Recipe, load_recipe

NOTUS, LORA = load_recipe("notus-7b-dpo"), load_recipe("notus-7b-dpo-lora")
A100_40, A100_80 = (GPU_TYPES[name].memory_gib * VISIBLE for name in ("A100", "A100-80GB"))


def with_offload(optimizer: str, parameters: str) -> Recipe:
    assert NOTUS.zero is not None
    zero = NOTUS.zero.model_copy(update={"offload_optimizer": optimizer, "offload_parameters": parameters})
    return NOTUS.model_copy(update={"zero": zero})


def offload_of(recipe: Recipe) -> tuple[str, str]:
    assert recipe.zero is not None
    return recipe.zero.offload_optimizer, recipe.zero.offload_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the published safetensors
        ("alignment-handbook/zephyr-7b-sft-full", 7_241_732_096),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("google/gemma-2-2b-it", 2_614_341_888),
    ],
)
def test_known_models_have_their_published_size(name: str, parameters: int) -> None:
    shape = shape_of(name)
    assert shape is not None
    assert shape.parameters == parameters


def test_a_local_folder_tells_its_own_shape(tmp_path: Path) -> None:
    config = {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path)) == MISTRAL_7B
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert shape_of(str(tmp_path)) is None
    assert shape_of("nobody/knows-this") is None


def test_a_base_in_four_bits_fits_where_one_in_sixteen_does_not() -> None:
    assert LORA.lora is not None
    quantized = LORA.model_copy(update={"lora": LORA.lora.model_copy(update={"quantize": "nf4"})})
    sixteen, four = (need_of(recipe, MISTRAL_7B, 1, Offload(False, False)) for recipe in (LORA, quantized))
    layers = MISTRAL_7B.layers * MISTRAL_7B.layer_parameters
    assert sixteen.states - four.states == pytest.approx(layers * (2 - 4.127 / 8), abs=2)
    assert four.activations == sixteen.activations
    assert fit(quantized, 24, 1).fits
    assert not fit(LORA, 24, 1).fits


def test_the_state_of_notus_is_what_a_checkpoint_of_it_has() -> None:
    assert state_bytes(NOTUS) == 7_241_732_096 * 8  # fp32 masters and RMSprop's square averages
    adapters = 32 * 64 * (4096 * 2 + (4096 + 1024) * 2 + 4096 * 2)
    assert state_bytes(LORA) == adapters * (4 + (4 if LORA.training.optimizer == "rmsprop" else 8))


def test_40_gb_cards_offload_the_optimizer_and_80_gb_cards_nothing() -> None:
    small, large = fit(NOTUS, A100_40, 8), fit(NOTUS, A100_80, 8)
    assert (small.fits, small.offload) == (True, Offload(optimizer=True, parameters=False))
    assert "with optimizer offloaded (41 with no offload)" in small.reason
    assert (large.fits, large.offload) == (True, Offload(optimizer=False, parameters=False))


def test_what_does_not_fit_says_by_how_much() -> None:
    big = NOTUS.model_copy(update={"training": NOTUS.training.model_copy(update={"per_device_batch": 64})})
    found = fit(big, A100_40, 8)
    assert not found.fits
    assert found.reason.endswith("GiB of each GPU with optimizer and weights offloaded, and it has 39")


def test_a_fixed_offload_is_kept() -> None:
    assert fit(with_offload("cpu", "cpu"), A100_80, 8).offload == Offload(optimizer=True, parameters=True)
    assert not fit(with_offload("none", "none"), A100_40, 8).fits


@pytest.mark.parametrize("offload", [Offload(False, False), Offload(True, False), Offload(True, True)])
def test_more_gpus_hold_less_each_and_activations_stay(offload: Offload) -> None:
    eight, sixteen = (need_of(NOTUS, MISTRAL_7B, count, offload) for count in (8, 16))
    assert sixteen.states == pytest.approx(eight.states / 2, abs=64)
    assert sixteen.activations == eight.activations
    assert sixteen.host == pytest.approx(eight.host, abs=1024)


def test_the_host_holds_what_is_offloaded() -> None:
    need = need_of(NOTUS, MISTRAL_7B, 8, Offload(True, True))
    assert need.states == 0
    assert need.host / GIB == pytest.approx(7.2417e9 * (2 + 4 + 4 + 4 + 2 + 2) / GIB, rel=1e-3)


def test_the_host_also_holds_what_a_save_copies_and_the_ranks() -> None:
    small, large = fit(NOTUS, A100_40, 8), fit(NOTUS, A100_80, 8)
    state = 7_241_732_096 * 8 / GIB
    assert large.host_gib == pytest.approx(state + 8 * 4, abs=0.1)
    assert small.host_gib == pytest.approx(state + 8 * 4 + 7_241_732_096 * (2 + 4 + 4 + 4) / GIB, abs=0.1)
    assert large.on_host(85).fits is False
    assert large.on_host(87).fits is True
    assert small.on_host(100).reason == "180 GiB of the host's memory with optimizer offloaded, and it has 100"
    assert large.on_host(None).fits is True
    assert large.on_host(None).reason.endswith("and what it has is not known")


def test_auto_is_settled_by_the_memory_and_keeps_what_the_run_began_with() -> None:
    def settle(recipe: Recipe = NOTUS, saved: dict[str, object] | None = None, gib: float | None = A100_40) -> Recipe:
        return settle_offload(recipe, gpu_gib=gib, count=8, saved=saved)[0]

    assert offload_of(settle()) == ("cpu", "none")
    assert offload_of(settle(gib=A100_80)) == ("none", "none")
    assert offload_of(settle(gib=None)) == ("none", "none")
    begun = {"offload": {"offload_optimizer": "cpu", "offload_parameters": "none"}}
    assert offload_of(settle(gib=A100_80, saved=begun)) == ("cpu", "none"), "bit for bit as it began"
    roomy = {"offload": {"offload_optimizer": "none", "offload_parameters": "none"}}
    assert offload_of(settle(saved=roomy)) == ("cpu", "none"), "what the run began with does not fit here"
    assert settle(with_offload("cpu", "none"), gib=A100_80) == with_offload("cpu", "none")
    assert offload_of(settle(with_offload("cpu", "auto"))) == ("cpu", "none")


def test_an_unknown_model_is_offloaded_to_be_safe() -> None:
    unknown = NOTUS.model_copy(update={"model": NOTUS.model.model_copy(update={"name": "nobody/knows-this"})})
    recipe, why = settle_offload(unknown, gpu_gib=A100_80, count=8, saved=None)
    assert offload_of(recipe) == ("cpu", "cpu")
    assert "not known" in why
