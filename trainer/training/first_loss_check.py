"""Checks the first step's loss: the model is still its own reference, so both give every answer the same probability.

Another value means that the reference is another model, from a stale cache or loaded differently. Training would be
pulled towards it to the end, without any sign.
"""

from __future__ import annotations

from trainer.config.losses import first_loss
from trainer.config.recipe import Dpo

SHARE = 0.05
"""Tolerance as a share of the expected loss, for rounding: bf16 log-probabilities of a long answer differ by a few
tenths between batches of different shapes, and `beta` scales that."""


def wrong_first_loss(dpo: Dpo, loss: float) -> str:
    """What is wrong with the loss of a run's first step; '' = nothing."""
    expected = first_loss(dpo.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing)
    if abs(loss - expected) <= SHARE * (1 + dpo.beta) * abs(expected):
        return ""
    return (
        f"the loss of the first step is {loss:.4g}, but with the base model as its own reference it is {expected:.4g}"
    )
