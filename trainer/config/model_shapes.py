"""Shapes of known models, to count parameters and bytes without loading anything.

The figures are from each model's published `config.json`. A local folder's own `config.json` takes precedence. An
unknown model is planned without checking its memory, and the plan notes that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.util.environment import user_path


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer with gated MLPs (Llama, Mistral, Qwen 2, Gemma)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    """Do input and output embeddings share their weights?"""
    head_size: int = 0
    """0 = hidden / heads."""
    attention_bias: bool = False
    """Do the query, key and value projections have biases (Qwen 2)?"""
    norms: int = 2
    """RMSNorms per layer."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        head = self.head_size or self.hidden // self.heads
        query, key_value = self.heads * head, self.kv_heads * head
        attention = 2 * self.hidden * query + 2 * self.hidden * key_value
        if self.attention_bias:
            attention += query + 2 * key_value
        return attention + 3 * self.hidden * self.intermediate + self.norms * self.hidden

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one embedding matrix."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def largest_layer_parameters(self) -> int:
        """The most that ZeRO-3 gathers at once."""
        return max(self.layer_parameters, self.embedding_parameters)

    def lora_parameters(self, rank: int, targets: tuple[str, ...]) -> int:
        """Parameters of adapters of that rank on these projections of every layer."""
        head = self.head_size or self.hidden // self.heads
        sizes = {
            "q_proj": (self.hidden, self.heads * head),
            "k_proj": (self.hidden, self.kv_heads * head),
            "v_proj": (self.hidden, self.kv_heads * head),
            "o_proj": (self.heads * head, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return self.layers * rank * sum(sum(sizes[name]) for name in targets if name in sizes)


MISTRAL_7B = Shape(4096, 32, 32, 8, 14336, 32000)
KNOWN: tuple[tuple[str, Shape], ...] = (
    (r"tiny-llama", Shape(64, 2, 4, 2, 128, 259)),
    (r"zephyr-7b|notus-7b|mistral-7b-(instruct-)?v0\.[12]$|mistral-7b-v0\.1", MISTRAL_7B),
    (r"mistral-7b(-instruct)?-v0\.3", Shape(4096, 32, 32, 8, 14336, 32768)),
    (r"smollm2?-135m", Shape(576, 30, 9, 3, 1536, 49152, tied=True)),
    (r"smollm2?-360m", Shape(960, 32, 15, 5, 2560, 49152, tied=True)),
    (r"smollm2?-1\.7b", Shape(2048, 24, 32, 32, 8192, 49152, tied=True)),
    (r"llama-2-7b", Shape(4096, 32, 32, 32, 11008, 32000)),
    (r"llama-2-13b", Shape(5120, 40, 40, 40, 13824, 32000)),
    (r"llama-3(\.1)?-8b|llama-3\.1-.*8b", Shape(4096, 32, 32, 8, 14336, 128256)),
    (r"llama-3\.2-1b", Shape(2048, 16, 32, 8, 8192, 128256, tied=True)),
    (r"llama-3\.2-3b", Shape(3072, 28, 24, 8, 8192, 128256, tied=True)),
    (r"qwen2\.5-0\.5b", Shape(896, 24, 14, 2, 4864, 151936, tied=True, attention_bias=True)),
    (r"qwen2\.5-1\.5b", Shape(1536, 28, 12, 2, 8960, 151936, tied=True, attention_bias=True)),
    (r"qwen2\.5-3b", Shape(2048, 36, 16, 2, 11008, 151936, tied=True, attention_bias=True)),
    (r"qwen2\.5-7b", Shape(3584, 28, 28, 4, 18944, 152064, attention_bias=True)),
    (r"qwen2\.5-14b", Shape(5120, 48, 40, 8, 13824, 152064, attention_bias=True)),
    (r"gemma-2-2b", Shape(2304, 26, 8, 4, 9216, 256000, tied=True, head_size=256, norms=4)),
    (r"gemma-2-9b", Shape(3584, 42, 16, 8, 14336, 256000, tied=True, head_size=256, norms=4)),
)


def shape_of(name: str) -> Shape | None:
    """The shape of a model by its hub name or local folder; None if it is not known."""
    config = user_path(name) / "config.json"
    if config.is_file():
        return shape_from_config(json.loads(config.read_text()))
    lowered = name.lower()
    return next((shape for pattern, shape in KNOWN if re.search(pattern, lowered)), None)


def shape_from_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape from the fields of a `config.json`; None for a model with another architecture."""
    kind = str(config.get("model_type", ""))
    if kind not in ("llama", "mistral", "qwen2", "gemma", "gemma2"):
        return None
    try:
        return Shape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
            head_size=int(config.get("head_dim") or 0),
            attention_bias=kind == "qwen2",
            norms=4 if kind == "gemma2" else 2,
        )
    except (KeyError, TypeError, ValueError):
        return None
