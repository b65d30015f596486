"""What may be turned in the policy, and the pauses between rounds in which no place had a machine."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WAIT_H = 1 / 60
LONGEST_WAIT_H = 5 / 60
WAIT_GROWTH = 1.6
"""SkyPilot's own back-off, so that we are never slower."""
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


def back_off_h(refusals_in_a_row: int) -> float:
    """The pause after so many rounds in which no place had a machine: 1 min, growing to 5 min."""
    wait_h = FIRST_WAIT_H
    for _ in range(refusals_in_a_row - 1):
        wait_h *= WAIT_GROWTH
        if wait_h >= LONGEST_WAIT_H:
            return LONGEST_WAIT_H
    return wait_h
