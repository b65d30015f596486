"""Every loss that a recipe may name, through our trainer in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from trainer.config.global_batch import Batch
from trainer.config.losses import SMOOTHED, Loss, first_loss
from trainer.config.recipe import Dpo, load_recipe
from trainer.config.trl_config import dpo_arguments
from trainer.training.first_loss_check import wrong_first_loss


def expected(dpo: Dpo) -> float:
    return first_loss(dpo.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.model.builtin_models import make_tiny_llama

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(folder)
    return folder


def loss_of(loss: Loss) -> Dpo:
    """Not the default beta: it scales some of the losses."""
    smoothing = 0.1 if loss in SMOOTHED else 0.0
    changed = {"loss": loss, "beta": 0.3, "label_smoothing": smoothing}
    return load_recipe("tiny-dpo-lora").dpo.model_copy(update=changed)


def trainer_of(loss: Loss, base: Path, folder: Path) -> Any:
    from transformers import AutoTokenizer
    from trl import DPOConfig

    from trainer.data.dataset import prepare
    from trainer.training.dpo_trainer import NotusDPOTrainer

    recipe = load_recipe("tiny-dpo-lora")
    dataset = recipe.dataset.model_copy(update={"rows": 8, "eval_rows": 0})
    recipe = recipe.model_copy(update={"dpo": loss_of(loss), "dataset": dataset})
    arguments = dpo_arguments(recipe, Batch(4, 4, 1), device="cpu", attention="sdpa", output=folder, run="r")
    del arguments["ddp_backend"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    return NotusDPOTrainer(
        model=str(base),
        args=DPOConfig(**arguments),
        train_dataset=prepare(recipe, tokenizer).train,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_step_of_each_loss(loss: Loss, base: Path, tmp_path: Path) -> None:
    trainer = trainer_of(loss, base, tmp_path)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    value = trainer.compute_loss(trainer.model, batch)
    assert value.item() == pytest.approx(expected(loss_of(loss)), rel=0.01), "it is its own reference"
    assert wrong_first_loss(loss_of(loss), value.item()) == ""
    value.backward()
    assert torch.isfinite(value)
    norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    assert norms
    assert all(torch.isfinite(norm) for norm in norms)
    assert sum(norms) > 0
    assert len(trainer.rewards["rewards/margins"]) == 1
