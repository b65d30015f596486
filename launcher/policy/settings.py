"""The policy's tunable settings."""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING_H = 1e-9
"""Tolerance when comparing sums of hours that are equal on paper."""


@dataclass(frozen=True)
class Settings:
    """Settings that the user can change."""

    return_h: float = 0.5
    """How long to stay on a machine before trying a cheaper one; doubled after each unsuccessful try."""
    cool_h: float = 1.0
    """How long after a preemption a place counts as having a fresh spell, which tends to end soon."""
    check_h: float = 1 / 60
    """Time between two checks of a running machine."""
    most_wait_h: float = 7 * 24.0
    """Without a machine anywhere: even a run that costs nothing ends eventually."""
    margin: float = 1.0
    """Safety margin before a deadline beyond what one preemption takes, as a share of a restart plus a check. Machines
    start late and speeds are estimates. 0 if time is exact, as in a replay."""
