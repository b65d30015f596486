"""How long others may take: a trainer that was asked to save and end, a cloud that was asked for a machine. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.model import GiveUp, Move, Observation, Place
from launcher.policy.observe import TEARDOWN_H
from launcher.policy.safety import money, on_demand_makes_it, reserve_usd

DEAF_S = 900.0
"""A trainer that was asked to stop by its user, or to move for a deadline, has obeyed by then, or never will."""
DEAF_SHARE = 2 / 3
"""Share of a restart's time that a trainer may take while a deadline waits. Later, on demand could not meet it."""
LEAST_S = 60.0
LEAST_REQUEST_S = 300.0
"""A cloud that has a machine gives it within some minutes."""


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


def request_s(seen: Observation, places: Sequence[Place]) -> float:
    """Seconds that a machine may be looked for in these places, until the request is cancelled.

    It is billed meanwhile, and no trainer and no look keep a limit. So it may take what the budget has, less the
    teardown; spot not what the way to the end on demand needs, nor the time for that.
    """
    limits_h = [math.inf]
    for place in places:
        if seen.budget_left_usd is not None:
            usd_per_h = place.price_usd_per_hour + seen.store_usd_per_h
            limits_h.append(_payable_usd(seen, place) / usd_per_h - TEARDOWN_H if usd_per_h > 0 else math.inf)
        if place.spot and seen.deadline_h is not None and on_demand_makes_it(seen):
            limits_h.append(seen.deadline_h - seen.work_left_h - seen.restart_h - TEARDOWN_H)
    return max(LEAST_REQUEST_S, min(limits_h) * 3600)


def _payable_usd(seen: Observation, place: Place) -> float:
    """By a machine that brings nothing."""
    reserve = reserve_usd(seen, seen.places) if place.spot else 0.0
    return money(seen) - (reserve if reserve <= money(seen) else 0.0)


def _pays_another_look(seen: Observation, check_h: float) -> bool:
    """And the teardown after it."""
    assert seen.running is not None
    usd = (check_h + TEARDOWN_H) * seen.running.place.price_usd_per_hour
    return usd < (seen.budget_left_usd or 0.0)
