"""What the first step's loss has to be: the model is still its own reference, so both say the same of every answer.

Another value means that the reference is another model: of a stale cache, or loaded in another way. Training would pull
towards it to the end, without any sign.
"""

from __future__ import annotations

import math

from trainer.config.recipe import Dpo

SHARE = 0.05
"""Of the expected loss, for rounding: bf16 log-probabilities of a long answer differ by some tenths between two batches
of other shapes, and `beta` scales that."""


def expected_first_loss(dpo: Dpo) -> float:
    """Where policy and reference agree: TRL 1.16's formulas (`DPOTrainer._compute_loss`) at log-ratios of 0."""
    epsilon, half = dpo.label_smoothing, 0.5 / dpo.beta
    match dpo.loss:
        case "hinge" | "apo_zero" | "apo_down":
            return 1.0
        case "nca_pair" | "bco_pair":
            return 2 * math.log(2)
        case "ipo":
            return half**2
        case "sppo_hard":
            return 2 * half**2
        case "exo_pair":
            return -math.log(2) - (math.log1p(-epsilon) + math.log(epsilon)) / 2
        case "discopop":
            return (math.log(2) + 1) / 2
    return math.log(2)


def wrong_first_loss(dpo: Dpo, loss: float) -> str:
    """What is wrong with the loss of a run's first step; '' = it is as it has to be."""
    expected = expected_first_loss(dpo)
    if abs(loss - expected) <= SHARE * (1 + dpo.beta) * abs(expected):
        return ""
    return (
        f"the loss of the first step is {loss:.4g}, and with the base model as its own reference it is {expected:.4g}"
    )
