"""`notus-launch drill`: small models of many families, and a whole drill of a recipe with its own model and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import UserError
from tests.integration.conftest import Launcher

SIZES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {"num_key_value_heads": 8, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "MistralConfig": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2Config": {"num_key_value_heads": 4},
    "Qwen3Config": {"head_dim": 128, "num_key_value_heads": 8},
    "Qwen3MoeConfig": {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    "MixtralConfig": {"num_local_experts": 8},
    "Gemma2Config": {"head_dim": 256, "num_key_value_heads": 4},
    "Gemma3TextConfig": {"head_dim": 256, "num_key_value_heads": 4},
    "Phi3Config": {},
    "GPT2Config": {},
    "OPTConfig": {},
    "GPTNeoXConfig": {},
    "SmolLM3Config": {"num_key_value_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_family_made_small_can_be_built_and_keeps_its_vocabulary(name: str) -> None:
    import transformers
    from transformers import AutoModelForCausalLM

    from trainer.model.miniature import LAYERS, shrunk

    kind = getattr(transformers, name)
    large = kind(**SIZES[name])
    small = kind(**shrunk(large.to_dict()))
    model = AutoModelForCausalLM.from_config(small)
    assert small.vocab_size == large.vocab_size
    assert small.num_hidden_layers == LAYERS
    assert sum(weight.numel() for weight in model.parameters()) < 40_000_000, "mostly its embedding"
    plain = large.num_attention_heads == getattr(large, "num_key_value_heads", large.num_attention_heads)
    assert (small.num_attention_heads == getattr(small, "num_key_value_heads", small.num_attention_heads)) == plain


def test_what_cannot_be_made_small_is_named(tmp_path: Path) -> None:
    from trainer.model.builtin_models import make_tiny_llama
    from trainer.model.miniature import make_miniature

    make_tiny_llama(tmp_path / "base")
    path = tmp_path / "base/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "no-such-activation"}))
    with pytest.raises(UserError, match=r"can't be made small: .*no-such-activation"):
        make_miniature(str(tmp_path / "base"), None, tmp_path / "small")


def test_a_model_that_is_not_there_is_refused_before_anything_is_trained(launcher: Launcher, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, tmp_path / "nowhere")
    done = launcher.run("drill", "--recipe", recipe)
    assert done.code == 2
    assert "nowhere" in done.err


@pytest.mark.slow
def test_a_drill_of_an_own_model_and_own_data(launcher: Launcher, tmp_path: Path) -> None:
    from trainer.model.builtin_models import make_tiny_llama

    make_tiny_llama(tmp_path / "base")
    recipe = _recipe(tmp_path, tmp_path / "base")
    bucket = launcher.bucket
    done = launcher.run("drill", "--recipe", recipe, "--kills", "1", "--bucket", bucket, "-o", "json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["passed"] is True
    assert told["differences"] == []
    assert len(told["killed_at_steps"]) == 1
    assert told["receipt"]["preemptions"] == 1
    assert any("LoRA under DDP, ipo loss, adamw" in line for line in told["shown"])
    assert any("60 rows of its data" in line for line in told["shown"])
    assert list(Path(bucket).rglob("*.json")) == [], "its runs are removed"
    assert list((launcher.home / "drills").iterdir()) == []


def _recipe(folder: Path, model: Path) -> str:
    """A recipe with hub, trackers and GPUs, on its own data."""
    with (folder / "pairs.jsonl").open("w") as file:
        for row in range(76):
            pair = {"question": f"What is {row} + 1?", "good": str(row + 1), "bad": "I don't know."}
            file.write(json.dumps(pair) + "\n")
    path = folder / "own.yaml"
    path.write_text(f"""\
name: own
method: lora
model: {{name: {model}}}
dataset:
  name: pairs.jsonl
  columns: {{prompt: question, chosen: good, rejected: bad}}
  eval_rows: 16
dpo: {{loss: ipo}}
training: {{learning_rate: 1.0e-3, optimizer: adamw, per_device_batch: 8, eval_every_steps: 100}}
lora: {{rank: 64, target_modules: [q_proj, v_proj]}}
tracking: [wandb]
hub: {{repo: me/own}}
hardware: {{gpus: "A100:8", hours: 3}}
""")
    return str(path)
