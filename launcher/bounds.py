"""Bounds on a launch's numbers, on the command line and in a task's environment. Light: `--help` imports it."""

from __future__ import annotations

from trainer.config.bounds import MAX_HOURS, MAX_PROCESSES, MAX_SEED

__all__ = [
    "MAX_COUNT",
    "MAX_HAZARD_H",
    "MAX_HOURS",
    "MAX_MINUTES",
    "MAX_PROCESSES",
    "MAX_SEED",
    "MAX_USD",
    "MIN_CHECK_MINUTES",
    "MIN_HAZARD_H",
    "MIN_HOURS",
    "MIN_USD",
]

MIN_HOURS = 0.001
"""Hours of work."""
MIN_USD, MAX_USD = 0.01, 1e7
MIN_HAZARD_H, MAX_HAZARD_H = 1 / 60, 24.0 * 3660
"""Mean life of a spot machine: a minute to ten years."""
MIN_CHECK_MINUTES, MAX_MINUTES = 0.05, 60.0 * 24
"""Time between two checks of a machine, and of a restart."""
MAX_COUNT = 1e9
"""Spells seen by earlier runs."""
