"""How often to save, from the cost of a save and the preemption rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from checkpoints.util.environment import number_of

HOURS_TO_PREEMPTION = "NOTUS_HOURS_TO_PREEMPTION"
"""Environment variable: mean lifetime of this machine. The NOTUS strategy sets it at each launch."""
ASSUMED_HOURS_TO_PREEMPTION = 6.0
"""The default if it isn't set."""

MIN_MINUTES = 0.5
MAX_MINUTES = 60.0


def hours_to_preemption(environment: Mapping[str, str]) -> float:
    """Mean lifetime of this machine; raises `UserError` if the variable has an impossible value."""
    return number_of(environment, HOURS_TO_PREEMPTION, ASSUMED_HOURS_TO_PREEMPTION, at_least=1e-3, at_most=1e9)


def best_interval_s(*, stall_s: float, mean_time_to_preemption_s: float) -> float:
    """Seconds of training between two saves that minimize the average loss of time.

    J. W. Young (1974), "A first order approximation to the optimum checkpoint interval", with the higher-order terms of
    J. T. Daly (2006), "A higher order estimate of the optimum checkpoint interval for restart dumps", eq. 37. With
    stall d and mean time between failures M:

        sqrt(2 d M) (1 + 1/3 sqrt(d / 2M) + 1/9 (d / 2M)) - d    for d < 2M, else M

    `stall_s` is how long a save stalls training, without the upload, which runs in the background.
    """
    d, m = stall_s, mean_time_to_preemption_s
    if d >= 2 * m:
        return m
    x = d / (2 * m)
    return math.sqrt(2 * d * m) * (1 + math.sqrt(x) / 3 + x / 9) - d


def auto_interval_minutes(*, stall_s: float, upload_s: float, mean_time_to_preemption_s: float) -> float:
    """The interval for `saves.auto`: the best one, but never so short that saves queue up.

    An upload slows training a little and uses the network; it may run for at most half of the time. The optimum is
    flat: twice the best interval increases a small loss by a quarter.
    """
    best_s = best_interval_s(stall_s=max(stall_s, 0.01), mean_time_to_preemption_s=mean_time_to_preemption_s)
    return min(MAX_MINUTES, max(MIN_MINUTES, best_s / 60, 2 * upload_s / 60))
