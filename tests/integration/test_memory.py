"""The memory model against DeepSpeed's own estimator, and the shapes against the models that transformers builds."""

from __future__ import annotations

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from trainer.config.memory_estimate import Offload, need_of
from trainer.config.model_shapes import MISTRAL_7B, shape_from_config
from trainer.config.recipe import load_recipe


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=8, intermediate_size=160, vocab_size=500),
        MistralConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, intermediate_size=100,
            vocab_size=300,
        ),
        Qwen2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, intermediate_size=100,
            vocab_size=300, tie_word_embeddings=True,
        ),
        Gemma2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=100,
            vocab_size=300, head_dim=32,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_shape_counts_what_transformers_builds(config: object) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_from_config(config.to_dict())  # type: ignore[attr-defined]
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("offload", [Offload(False, False), Offload(True, False), Offload(True, True)], ids=str)
@pytest.mark.parametrize("count", [4, 8, 16])
def test_states_are_what_deepspeed_estimates(offload: Offload, count: int) -> None:
    """With AdamW, for which its formula is made, and without the reference model, which it doesn't know."""
    recipe = load_recipe("notus-7b-dpo")
    adamw = recipe.model_copy(update={"training": recipe.training.model_copy(update={"optimizer": "adamw"})})
    need = need_of(adamw, MISTRAL_7B, count, offload)
    reference = 0 if offload.parameters else 2 * MISTRAL_7B.parameters // count
    host, gpu, largest = estimate_zero3_model_states_mem_needs(
        MISTRAL_7B.parameters,
        MISTRAL_7B.largest_layer_parameters,
        num_gpus_per_node=count,
        cpu_offload=offload.optimizer,
        cpu_offload_params=offload.parameters,
        additional_buffer_factor=1.0,
    )
    theirs = gpu - largest
    # Ours has bf16 gradients beside the fp32 ones of the step; theirs has only the latter.
    bf16_gradients = 0 if offload.optimizer else 2 * MISTRAL_7B.parameters // count
    assert need.states - reference - bf16_gradients == pytest.approx(theirs, rel=0.01, abs=1e6)
    if offload.optimizer:
        ours = need.host - (2 * MISTRAL_7B.parameters if offload.parameters else 0) - 2 * MISTRAL_7B.parameters
        assert ours == pytest.approx(host, rel=0.01)
