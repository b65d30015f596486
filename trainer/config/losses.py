"""The DPO losses that a recipe can name, and the value of each when policy and reference agree.

To add one: its name here, as TRL's `loss_type`, and its value in `first_loss`; tests/integration/test_losses.py
compares with TRL's own.
"""

from __future__ import annotations

import math
from typing import Literal

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "ipo",
    "hinge",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
]
SMOOTHED: tuple[Loss, ...] = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses that use `label_smoothing`."""


def first_loss(loss: Loss, *, beta: float, label_smoothing: float) -> float:
    """The value at log-ratios of 0, by TRL 1.16's formulas (`DPOTrainer._compute_loss`)."""
    half = 0.5 / beta
    match loss:
        case "hinge" | "apo_zero" | "apo_down":
            return 1.0
        case "nca_pair" | "bco_pair":
            return 2 * math.log(2)
        case "ipo":
            return half**2
        case "sppo_hard":
            return 2 * half**2
        case "exo_pair":
            return -math.log(2) - (math.log1p(-label_smoothing) + math.log(label_smoothing)) / 2
        case "discopop":
            return (math.log(2) + 1) / 2
    return math.log(2)
