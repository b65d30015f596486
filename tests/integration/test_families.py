"""Models of other families than Llama take steps of DPO, through our trainer in this process."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config.global_batch import Batch
from trainer.config.recipe import load_recipe
from trainer.config.trl_config import dpo_arguments
from trainer.training.reference_log_probs import ReferenceCache, Values

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny(family: str, folder: Path) -> Path:
    """A random model of a family, with the tokenizer of the tiny Llama."""
    import transformers

    from trainer.model.builtin_models import make_tiny_llama

    make_tiny_llama(folder)
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(folder))
    more = {"head_dim": 16} if family == "Gemma2" else {}
    config = getattr(transformers, f"{family}Config")(vocab_size=vocabulary, **SHAPE, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


def trainer_of(base: Path, output: Path, how: str = "live", **options: Any) -> Any:
    """Two steps on the same four pairs, in float32."""
    from transformers import AutoTokenizer
    from trl import DPOConfig

    from trainer.data.dataset import prepare
    from trainer.training.dpo_trainer import NotusDPOTrainer

    recipe = load_recipe("tiny-dpo")
    recipe = recipe.model_copy(
        update={
            "zero": None,
            "model": recipe.model.model_copy(update={"dtype": "float32"}),
            "dpo": recipe.dpo.model_copy(update={"reference": how}),
            "dataset": recipe.dataset.model_copy(update={"rows": 4, "eval_rows": 0}),
            "training": recipe.training.model_copy(
                update={"max_steps": 2, "log_every_steps": 1, "warmup_ratio": 0.0, "bf16": False, "epochs": 2}
            ),
        }
    )
    arguments = dpo_arguments(recipe, Batch(4, 4, 1), device="cpu", attention="sdpa", output=output, run="r")
    del arguments["ddp_backend"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = prepare(recipe, tokenizer)
    return NotusDPOTrainer(
        model=str(base),
        args=DPOConfig(**arguments),
        train_dataset=pairs.train,
        processing_class=tokenizer,
        **options,
    )


def train(trainer: Any) -> list[dict[str, float]]:
    """The log line of each step."""
    rows: list[dict[str, float]] = []
    trainer.hooks = SimpleNamespace(more_figures=dict, on_logged=rows.append)
    trainer.train()
    return rows


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Gemma2"])
def test_steps_of_each_family(family: str, tmp_path: Path) -> None:
    trainer = trainer_of(tiny(family, tmp_path / "model"), tmp_path)
    assert type(trainer.model).__name__ == f"{family}ForCausalLM"
    first, second = train(trainer)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5), "policy and reference are the same model"
    assert first["grad_norm"] > 0
    assert second["loss"] < first["loss"]
    assert second["rewards/margins"] > 0


class Released:
    """An engine that TRL would keep."""

    destroyed = 0

    def destroy(self) -> None:
        self.destroyed += 1


def test_a_precomputed_reference_leaves_memory_and_its_values_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.training import dpo_trainer

    def known(cache: ReferenceCache, forward: Any, **options: Any) -> Values:
        assert np.isfinite(forward(range(2))).all()
        return np.full((cache.rows, 2), [-30.0, -40.0], dtype=np.float32)

    engine = Released()

    def cache(rows: Any, batch: int) -> ReferenceCache:
        made[0]._precompute_engine = engine  # as under ZeRO-3, for the first chunk that nobody has computed
        return ReferenceCache(None, "key", len(rows), batch)  # type: ignore[arg-type]

    made: list[Any] = []
    monkeypatch.setattr(dpo_trainer, "compute", known)
    build = dpo_trainer.NotusDPOTrainer.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(dpo_trainer.NotusDPOTrainer, "__init__", noted)
    monkeypatch.setattr("trl.trainer.dpo_trainer.hash_module", lambda module: pytest.fail("hashes the whole model"))
    trainer = trainer_of(tiny("Mistral", tmp_path / "model"), tmp_path, "precomputed", reference=cache)
    assert trainer.ref_model is None
    assert trainer._precompute_engine is None
    assert engine.destroyed == 1
    first, _ = train(trainer)
    assert first["loss"] != pytest.approx(math.log(2), abs=1e-3), "the reference's values are those of the cache"
