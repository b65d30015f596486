"""A first step that says that the reference is another model. The figures of each loss: tests/integration/test_losses.py."""

from __future__ import annotations

import math

from trainer.config.recipe import Dpo
from trainer.training.first_loss_check import wrong_first_loss


def test_another_reference_is_seen() -> None:
    assert wrong_first_loss(Dpo(), 0.9046) == (
        "the loss of the first step is 0.9046, but with the base model as its own reference it is 0.6931"
    )
    assert wrong_first_loss(Dpo(), math.log(2) + 0.02) == ""
    assert wrong_first_loss(Dpo(), 0.64)
