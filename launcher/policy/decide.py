"""The policy: cheapest spot first, on demand if there is no spot or a limit requires it, back to cheaper places later.

A spot machine never uses up the time or the money that an on-demand machine needs to finish, and nothing is started
that the budget cannot pay for to the end. Several machines in a row without a new committed step set a place aside, and
eventually end the run (machine_work.py). With a deadline and a view of the spot market, the value of the slack decides
between waiting, spot and on demand (slack.py). Without a deadline, the policy never waits while on demand is available.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.back_off import FIRST_WAIT_H, back_off_h
from launcher.policy.model import Action, GiveUp, Launch, Move, Observation, PlaceState, Running, Wait
from launcher.policy.moves import leave_on_demand, leave_spot
from launcher.policy.safety import (
    closing_usd,
    cost_to_end,
    finishes_within_budget,
    is_safe_place,
    money,
    must_be_safe,
    on_demand_in_time,
    payable,
    reserve_at_risk,
    still_binds,
    within_reserve,
)
from launcher.policy.settings import Settings
from launcher.policy.slack import by_slack_value
from launcher.policy.work_price import in_order, worth_their_price

STUCK_H = 0.75
"""A machine is given up after this long without a new step or a new phase of its start."""
MOST_DOUBLINGS = 2
UNCOMMITTED_H = 3.0
"""How long a machine may train without a commit, for example because its uploads fail."""
SAVES_MISSED = 1.5
"""For runs that save less often: how many save intervals may pass without a commit."""


def decide(seen: Observation, settings: Settings | None = None) -> Action:
    """Decide what to do now.

    Returns `Stay`, `Move` or `GiveUp` if a machine is running, else `Launch`, `Wait` or `GiveUp`.
    """
    settings = settings or Settings()
    if seen.running is not None:
        return _while_running(seen, seen.running, settings)
    return _without_machine(seen, settings)


def _without_machine(seen: Observation, settings: Settings) -> Action:
    if not seen.places:
        return GiveUp("places", "no cloud has an offer for this task")
    payables = [state for state in seen.places if payable(seen, state.place)]
    if not payables:
        return _unpayable(seen)
    if seen.effort.exhausted:
        return GiveUp("progress", seen.effort.exhausted)
    eligible = [state for state in payables if state.rest_h <= 0]
    if not eligible:
        return _until_one_is_eligible(seen, payables)
    worth = worth_their_price(seen, within_reserve(seen, eligible), settings)
    if (out_h := min((state.out_h or 0.0 for state in worth), default=0.0)) >= settings.most_wait_h:
        return GiveUp("places", f"none of the {len(worth)} places has had a machine for {out_h / 24:.0f} days")
    if _all_refused_just_now(worth):
        return Wait(back_off_h(seen.refusals_in_a_row), "sold_out", f"none of the {len(worth)} places has a machine")
    if seen.market is not None and on_demand_in_time(seen):
        return by_slack_value(seen, seen.market, worth, settings)
    hurry = must_be_safe(seen, settings) and still_binds(seen)
    order = in_order(seen, worth, settings, on_demand_first=hurry)
    if hurry:
        return Launch(order, "deadline", "the deadline is near: on demand first")
    return Launch(order, "cheapest", "cheapest first, including the cost of restarts after preemptions")


def _unpayable(seen: Observation) -> GiveUp:
    cheapest = min((state.place for state in seen.places), key=lambda place: place.price_usd_per_hour)
    return GiveUp(
        "budget",
        f"the budget has ${money(seen):.2f} left, and finishing costs at least "
        f"${cost_to_end(seen, cheapest):.2f} ({cheapest})",
    )


def _until_one_is_eligible(seen: Observation, places: Sequence[PlaceState]) -> Action:
    """All places are set aside: wait until the first one may be tried again."""
    rest_h = min(state.rest_h for state in places)
    reason = f"{seen.effort.machines} machines in a row committed no new step, for ${seen.effort.usd:.2f}"
    if not math.isfinite(rest_h):
        return GiveUp("progress", f"{reason}, and no other kind of place is left to try")
    return Wait(rest_h, "progress", reason)


def _while_running(seen: Observation, running: Running, settings: Settings) -> Action:
    place = running.place
    closing = seen.budget_left_usd is not None and seen.budget_left_usd <= closing_usd(seen, place)
    if closing and not finishes_within_budget(seen, place):
        return GiveUp("budget", f"only ${money(seen):.2f} of the budget is left")
    if (stuck := _stuck(seen, running)) is not None:
        return stuck
    if not place.spot:
        return leave_on_demand(seen, running, settings)
    can_be_safe = any(is_safe_place(seen, state) for state in seen.places)
    if can_be_safe and must_be_safe(seen, settings) and on_demand_in_time(seen):
        reason = "the deadline is near, and a preemption would miss it: moving to on demand"
        return Move("deadline", reason, urgent=True)
    if running.reserve and reserve_at_risk(seen, place, settings):
        reason = "a preemption would leave too little of the budget to finish: moving to on demand"
        return Move("budget", reason, urgent=True)
    return leave_spot(seen, running, settings)


def _stuck(seen: Observation, running: Running) -> Move | None:
    """Return the move away from a machine without progress, or None.

    Each further stuck machine in a row gets twice the time, because starts may really be that slow. There is no extra
    time once the dollars allowed without progress are used up.
    """
    patience_h = STUCK_H * 2 ** min(seen.effort.stuck, MOST_DOUBLINGS)
    within_budget = seen.effort.usd + running.age_h * running.place.price_usd_per_hour < seen.effort.most_usd
    if running.stuck_h >= (patience_h if within_budget else STUCK_H):
        return Move("progress", f"no progress for {running.stuck_h * 60:.0f} min", urgent=True)
    if running.trained and running.uncommitted_h >= max(UNCOMMITTED_H, SAVES_MISSED * seen.save_every_h):
        return Move("progress", f"no step committed for {running.uncommitted_h:.1f} h", urgent=True)
    return None


def _all_refused_just_now(places: Sequence[PlaceState]) -> bool:
    """Has every place refused since the last wait?"""
    return all(state.refused_h_ago is not None and state.refused_h_ago < FIRST_WAIT_H for state in places)
