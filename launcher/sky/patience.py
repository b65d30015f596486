"""How long a trainer that was asked to save and end may take, until its machine is given back without it. Pure."""

from __future__ import annotations

import math

from launcher.policy.model import GiveUp, Move, Observation
from launcher.policy.observe import TEARDOWN_H

DEAF_S = 900.0
"""A trainer that was asked to stop by its user, or to move for a deadline, has obeyed by then, or never will."""
DEAF_SHARE = 2 / 3
"""Share of a restart's time that a trainer may take while a deadline waits. Later, on demand could not meet it."""
LEAST_S = 60.0


def patience_s(action: Move | GiveUp, seen: Observation, check_h: float) -> float:
    """Seconds since the request; `check_h` are the hours between two looks.

    A set-up has nothing to save. A save that a deadline or a budget has no time for is not begun.
    """
    assert seen.running is not None
    if isinstance(action, Move) and not action.urgent:
        return math.inf
    if not seen.running.trained:
        return 0.0
    if isinstance(action, Move) and action.cause == "deadline":
        limit_s = max(LEAST_S, min(DEAF_S, DEAF_SHARE * seen.restart_h * 3600))
        return limit_s if (seen.save_h + check_h) * 3600 <= limit_s else 0.0
    if isinstance(action, GiveUp) and action.limit == "budget" and not _pays_another_look(seen, check_h):
        return 0.0
    return max(LEAST_S, (seen.closing_h - check_h) * 3600 - 60.0)


def _pays_another_look(seen: Observation, check_h: float) -> bool:
    """And the teardown after it."""
    assert seen.running is not None
    usd = (check_h + TEARDOWN_H) * seen.running.place.price_usd_per_hour
    return usd < (seen.budget_left_usd or 0.0)
