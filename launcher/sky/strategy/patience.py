"""Time limits for others: a trainer that was requested to save and end, a cloud to provide a machine. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.model import GiveUp, Move, Observation, Place
from launcher.policy.observe import TEARDOWN_H
from launcher.policy.safety import money, on_demand_in_time, reserve_usd

UNRESPONSIVE_S = 900.0
"""A trainer that has not stopped for its user, or moved for a deadline, after this long never will."""
UNRESPONSIVE_SHARE = 2 / 3
"""Share of a restart's time that a trainer may take if a deadline is near. Later, on demand could not meet it."""
LEAST_S = 60.0
LEAST_REQUEST_S = 300.0
"""A cloud that has a machine provides it within a few minutes."""


def patience_s(action: Move | GiveUp, seen: Observation, check_h: float) -> float:
    """Seconds to wait after the request; `check_h` is the time between two checks.

    A set-up has nothing to save. A save that a deadline or budget leaves no time for is not waited for.
    """
    assert seen.running is not None
    if isinstance(action, Move) and not action.urgent:
        return math.inf
    if not seen.running.trained:
        return 0.0
    if isinstance(action, Move) and action.cause == "deadline":
        limit_s = max(LEAST_S, min(UNRESPONSIVE_S, UNRESPONSIVE_SHARE * seen.restart_h * 3600))
        return limit_s if (seen.save_h + check_h) * 3600 <= limit_s else 0.0
    if isinstance(action, GiveUp) and action.limit == "budget" and not _pays_another_check(seen, check_h):
        return 0.0
    return max(LEAST_S, (seen.closing_h - check_h) * 3600 - 60.0)


def request_s(seen: Observation, places: Sequence[Place]) -> float:
    """Timeout in seconds of a request for a machine in these places.

    A machine may be billed meanwhile, while neither a trainer nor a check enforces the limits. So the request may use
    the budget less the teardown; on spot, it must leave the money and the time to finish on demand.
    """
    limits_h = [math.inf]
    for place in places:
        if seen.budget_left_usd is not None:
            usd_per_h = place.price_usd_per_hour + seen.store_usd_per_h
            limits_h.append(_payable_usd(seen, place) / usd_per_h - TEARDOWN_H if usd_per_h > 0 else math.inf)
        if place.spot and seen.deadline_h is not None and on_demand_in_time(seen):
            limits_h.append(seen.deadline_h - seen.work_left_h - seen.restart_h - TEARDOWN_H)
    return max(LEAST_REQUEST_S, min(limits_h) * 3600)


def _payable_usd(seen: Observation, place: Place) -> float:
    """Money that a machine without progress may use."""
    reserve = reserve_usd(seen, seen.places) if place.spot else 0.0
    return money(seen) - (reserve if reserve <= money(seen) else 0.0)


def _pays_another_check(seen: Observation, check_h: float) -> bool:
    """Does the budget cover another check interval and the teardown?"""
    assert seen.running is not None
    usd = (check_h + TEARDOWN_H) * seen.running.place.price_usd_per_hour
    return usd < (seen.budget_left_usd or 0.0)
