"""A model of any size with random weights, long pairs, and recipes over them: what the GPU is given to do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trainer.config.model_shapes import MISTRAL_7B, Shape

SMALL = Shape(hidden=512, layers=6, heads=8, kv_heads=4, intermediate=1536, vocabulary=4096)
WORDS = [
    "spot",
    "machine",
    "price",
    "zone",
    "train",
    "save",
    "resume",
    "shard",
    "step",
    "loss",
    "exact",
    "cloud",
    "node",
    "budget",
    "deadline",
    "hazard",
]


def layers_of_7b(layers: int) -> Shape:
    """Mistral 7B with fewer layers: the same products of matrices, and room for whole training states on one GPU."""
    return Shape(4096, layers, MISTRAL_7B.heads, MISTRAL_7B.kv_heads, MISTRAL_7B.intermediate, MISTRAL_7B.vocabulary)


def make_model(folder: Path, shape: Shape) -> Path:
    """Random weights in bf16, with the tokenizer of the tiny Llama (one token a byte)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.model.builtin_models import make_tiny_llama

    make_tiny_llama(folder)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(1)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def make_pairs(path: Path, rows: int, tokens: int) -> Path:
    """Pairs whose prompt and answer have at least so many tokens together."""
    generator = random.Random(5)

    def text(size: int) -> str:
        said = ""
        while len(said) < size:
            said += generator.choice(WORDS) + " "
        return said

    lines = [
        {
            "instruction": text(tokens // 4),
            "chosen_response": text(tokens),
            "rejected_response": text(tokens),
        }
        for _ in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_recipe(path: Path, base: Path, pairs: Path, **sections: dict[str, Any]) -> Path:
    """A recipe over them, as JSON (which YAML is too); a section's settings add to the ones here."""
    settings: dict[str, Any] = {
        "name": path.stem,
        "description": "for a test on a GPU",
        "method": "lora" if "lora" in sections else "full",
        "model": {"name": str(base)},
        "dataset": {"name": str(pairs), "eval_rows": 0},
        "dpo": {"beta": 0.1, "max_length": 256, "max_prompt_length": 128},
        "training": {
            "epochs": 1,
            "max_steps": 12,
            "learning_rate": 1e-4,
            "schedule": "linear",
            "warmup_ratio": 0.1,
            "optimizer": "rmsprop",
            "per_device_batch": 2,
            "per_device_eval_batch": 2,
            "log_every_steps": 4,
        },
        "saves": {"every_steps": 5, "keep": 1},
        "tracking": [],
        "hardware": {"gpus": "H100:1", "hours": 0.1},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    path.write_text(json.dumps(settings))
    return path
