"""Cost and finishing time of a plan, as a distribution: price x (work + start + what preemptions cost).

With a constant hazard the number of preemptions during T hours of running is Poisson. The running time grows with each
preemption, so the count for a job of `work` hours is the fixed point of N ~ Poisson(rate x (work + N x lost work)): a
Borel-Tanner law. Its mean is rate x work / (1 - rate x lost), and its probabilities are summed exactly.
(Consul and Jain 1973, "A generalization of the Poisson distribution", eq. 2.1, with theta = rate x work and
lambda = rate x lost.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from launcher.hazard import Hazard

START_H = 0.25
"""From the launch to the first step on a fresh VM: boot, set-up with flash-attn's wheel, model download. Assumed."""


class Estimate(BaseModel):
    """What a plan comes to."""

    model_config = ConfigDict(frozen=True)

    expected_cost_usd: float
    cost_p95_usd: float
    expected_finish_h: float
    finish_p95_h: float
    expected_preemptions: float
    deadline_probability: float | None
    """None without a deadline."""


def estimate(*, price_usd_per_hour: float, work_h: float, hazard: Hazard, deadline_h: float | None = None) -> Estimate:
    """Estimate a run on one kind of machine.

    Args:
        price_usd_per_hour: of the whole node, while it runs.
        work_h: hours of training without any preemption.
        hazard: of that kind of machine.
        deadline_h: hours from now, for the probability.
    """
    finish: list[tuple[float, float]] = []
    cost: list[tuple[float, float]] = []
    for count, probability in preemption_counts(hazard, work_h):
        running_h = START_H + work_h + count * (hazard.lost_work_h + START_H)
        finish.append((running_h + count * hazard.waiting_h, probability))
        cost.append((running_h * price_usd_per_hour, probability))
    in_time = None
    if deadline_h is not None:
        in_time = sum(probability for hours, probability in finish if hours <= deadline_h)
    return Estimate(
        expected_cost_usd=_mean(cost),
        cost_p95_usd=_quantile(cost, 0.95),
        expected_finish_h=_mean(finish),
        finish_p95_h=_quantile(finish, 0.95),
        expected_preemptions=_mean([(float(n), p) for n, p in preemption_counts(hazard, work_h)]),
        deadline_probability=in_time,
    )


def preemption_counts(hazard: Hazard, work_h: float) -> Iterator[tuple[int, float]]:
    """Yield (preemptions, probability) until all but 1e-9 of the mass is out. Raises `ValueError` if no end is
    likely: each preemption then costs more work than is done between two of them."""
    theta = hazard.preemptions_per_hour * work_h
    growth = hazard.preemptions_per_hour * hazard.lost_work_h
    if growth >= 1:
        raise ValueError("the node is taken away faster than the work between two saves is done")
    total, count = 0.0, 0
    while total < 1 - 1e-9:
        mean = theta + count * growth
        log_p = math.log(theta) + (count - 1) * math.log(mean) - mean - math.lgamma(count + 1) if theta else -math.inf
        probability = math.exp(log_p) if theta else 1.0
        yield count, probability
        total += probability
        count += 1


def _mean(distribution: list[tuple[float, float]]) -> float:
    return sum(value * probability for value, probability in distribution)


def _quantile(distribution: list[tuple[float, float]], level: float) -> float:
    mass = 0.0
    for value, probability in sorted(distribution):
        mass += probability
        if mass >= level:
            return value
    return max(value for value, _ in distribution)
