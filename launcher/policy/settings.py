"""What may be turned in the policy, and the pauses between rounds in which no place had a machine."""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING_H = 1e-9
"""Sums of hours that are equal on paper may differ by so much."""


@dataclass(frozen=True)
class Settings:
    """What the user may turn."""

    return_h: float = 0.5
    """How long to stay on a machine before a cheaper one is tried; doubled after each unsuccessful try."""
    cool_h: float = 1.0
    """For how long a place that took a machine away counts as a spell that has just begun: those end soon."""
    check_h: float = 1 / 60
    """Time between two looks at a running machine."""
    most_wait_h: float = 7 * 24.0
    """Without a machine anywhere: a run that costs nothing ends too, at last."""
    margin: float = 1.0
    """What is kept of the time to a deadline beyond what one preemption takes, as a share of a restart and a look:
    machines start late and speeds are estimates. 0 where time is exact, as in a replay."""
