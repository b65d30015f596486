"""The first step's loss, as TRL computes it, for each loss that a recipe may have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest

from trainer.first_loss import expected_first_loss, wrong_first_loss
from trainer.recipe import SMOOTHED, Dpo, Loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trainer.builtin_model import make_tiny_llama

    path = tmp_path_factory.mktemp("tiny")
    make_tiny_llama(path)
    return path


def first_loss_of_trl(folder: Path, dpo: Dpo, output: Path) -> float:
    import datasets
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"q{n}?", "chosen": f" yes, {n} it is", "rejected": f" no {n}"} for n in range(4)]
    settings: dict[str, Any] = {
        "beta": dpo.beta,
        "loss_type": [dpo.loss],
        "label_smoothing": dpo.label_smoothing,
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    trainer = DPOTrainer(
        model=str(folder),
        args=DPOConfig(output_dir=str(output), **settings),
        train_dataset=datasets.Dataset.from_list(rows),
    )
    trainer.train()
    return float(next(line["loss"] for line in trainer.state.log_history if "loss" in line))


@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_first_loss_is_known(folder: Path, tmp_path: Path, loss: Loss) -> None:
    dpo = Dpo(loss=loss, beta=0.3, label_smoothing=0.1 if loss in SMOOTHED else 0.0)
    found = first_loss_of_trl(folder, dpo, tmp_path)
    assert found == pytest.approx(expected_first_loss(dpo), rel=0.01)
    assert wrong_first_loss(dpo, found) == ""


def test_another_reference_is_seen() -> None:
    assert wrong_first_loss(Dpo(), 0.9046) == (
        "the loss of the first step is 0.9046, and with the base model as its own reference it is 0.6931"
    )
    assert wrong_first_loss(Dpo(), math.log(2) + 0.02) == ""
    assert wrong_first_loss(Dpo(), 0.64)
