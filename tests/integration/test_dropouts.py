"""A base model's own dropouts are off, whatever the adapters have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, LlamaConfig, OPTConfig
from trl.trainer.utils import disable_dropout_in_model

from trainer.config.recipe import Lora
from trainer.model.dropout import as_given, settle_dropouts
from trainer.model.lora import peft_settings

MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "gpt2": (GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2), ("c_attn",)),
    "opt": (
        OPTConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            ffn_dim=32,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            dropout=0.3,
            attention_dropout=0.3,
            layerdrop=0.3,
            max_position_embeddings=32,
        ),
        ("q_proj",),
    ),
    "falcon": (
        FalconConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_dropout=0.3,
            attention_dropout=0.3,
        ),
        ("query_key_value",),
    ),
    "llama": (
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            attention_dropout=0.3,
        ),
        ("q_proj",),
    ),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft then sets it, for GPT-2's matrices
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_only_adapters_drop(name: str, dropout: float, attention: str) -> None:
    config, targets = MODELS[name]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    lora = Lora(rank=2, dropout=dropout, target_modules=targets)
    model = get_peft_model(base, peft_settings(lora))
    disable_dropout_in_model(model)
    before = {name: value for name, value in vars(config).items() if "drop" in name}
    given = settle_dropouts(model, lora)
    with as_given(model, given):
        assert {name: value for name, value in vars(model.config).items() if "drop" in name} == before
    ids = torch.arange(20).reshape(1, 20)

    model.eval()
    wanted = model(input_ids=ids).logits
    model.train()
    assert torch.equal(model(input_ids=ids).logits, wanted), "the adapters add nothing yet, and nothing else drops"

    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) == (dropout == 0.0)
