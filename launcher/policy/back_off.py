"""Back-off between search rounds in which no place had a machine."""

from __future__ import annotations

FIRST_WAIT_H = 1 / 60
LONGEST_WAIT_H = 5 / 60
WAIT_GROWTH = 1.6
"""The same as SkyPilot's own back-off, so that we are never slower."""


def back_off_h(refusals_in_a_row: int) -> float:
    """The pause after N unsuccessful rounds in a row: 1 min, growing to 5 min."""
    wait_h = FIRST_WAIT_H
    for _ in range(refusals_in_a_row - 1):
        wait_h *= WAIT_GROWTH
        if wait_h >= LONGEST_WAIT_H:
            return LONGEST_WAIT_H
    return wait_h
