"""The policy: cheapest spot first, on demand where there is none or a limit wants it, back to cheaper places later.

It never lets a spot machine run into the time, or the money, that an on-demand machine needs to get to the end, and
starts nothing that the budget can't pay to its end. Machines in a row that bring no new committed step end a place's
turn, and at last the run (machine_work.py). With a deadline and a view of the spot market, what the slack is worth
decides between waiting, spot and on demand (slack.py); without a deadline nobody waits while on demand has a machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.back_off import FIRST_WAIT_H, back_off_h
from launcher.policy.model import Action, GiveUp, Known, Launch, Move, Observation, Running, Wait
from launcher.policy.moves import leave_on_demand, leave_spot
from launcher.policy.safety import (
    closing_usd,
    cost_to_end,
    ends_in_it,
    is_safe_place,
    money,
    must_be_safe,
    on_demand_makes_it,
    payable,
    reserve_is_going,
    still_binds,
    within_reserve,
)
from launcher.policy.settings import Settings
from launcher.policy.slack import by_outlook
from launcher.policy.work_price import in_order, worth_their_price

STUCK_H = 0.75
"""Without a new step, or another phase of its start, a machine is given up after that long."""
MOST_DOUBLINGS = 2
UNCOMMITTED_H = 3.0
"""A machine that trains and commits nothing, because the bucket takes nothing from it."""
SAVES_MISSED = 1.5
"""Of a run that saves less often than that: so many of its intervals without a commit."""


def decide(seen: Observation, settings: Settings | None = None) -> Action:
    """What to do now.

    With a machine running: `Stay`, `Move` or `GiveUp`. Without one: `Launch`, `Wait` or `GiveUp`.
    """
    settings = settings or Settings()
    if seen.running is not None:
        return _while_running(seen, seen.running, settings)
    return _without_machine(seen, settings)


def _without_machine(seen: Observation, settings: Settings) -> Action:
    if not seen.places:
        return GiveUp("places", "no cloud has an offer for this task")
    payables = [known for known in seen.places if payable(seen, known.place)]
    if not payables:
        return _unpayable(seen)
    if seen.effort.exhausted:
        return GiveUp("progress", seen.effort.exhausted)
    awake = [known for known in payables if known.rest_h <= 0]
    if not awake:
        return _until_one_is_awake(seen, payables)
    worth = worth_their_price(seen, within_reserve(seen, awake), settings)
    if (out_h := min((known.out_h or 0.0 for known in worth), default=0.0)) >= settings.most_wait_h:
        return GiveUp("places", f"none of the {len(worth)} places has had a machine for {out_h / 24:.0f} days")
    if _all_refused_just_now(worth):
        return Wait(back_off_h(seen.refusals_in_a_row), "sold_out", f"none of the {len(worth)} places has a machine")
    if seen.market is not None and on_demand_makes_it(seen):
        return by_outlook(seen, seen.market, worth, settings)
    hurry = must_be_safe(seen, settings) and still_binds(seen)
    order = in_order(seen, worth, settings, on_demand_first=hurry)
    if hurry:
        return Launch(order, "deadline", "the deadline is near: on demand first")
    return Launch(order, "cheapest", "cheapest first, with the restarts that each place's preemptions cost")


def _unpayable(seen: Observation) -> GiveUp:
    cheapest = min((known.place for known in seen.places), key=lambda place: place.price_usd_per_hour)
    return GiveUp(
        "budget",
        f"the budget has ${money(seen):.2f} left, and the cheapest way to the end is "
        f"${cost_to_end(seen, cheapest):.2f} ({cheapest})",
    )


def _until_one_is_awake(seen: Observation, places: Sequence[Known]) -> Action:
    """All of them brought nothing of late: the first that may be tried again is waited for."""
    rest_h = min(known.rest_h for known in places)
    told = f"{seen.effort.machines} machines in a row, for ${seen.effort.usd:.2f}, brought no new committed step"
    if not math.isfinite(rest_h):
        return GiveUp("progress", f"{told}, and no other kind of place is left to try")
    return Wait(rest_h, "progress", told)


def _while_running(seen: Observation, running: Running, settings: Settings) -> Action:
    place = running.place
    closing = seen.budget_left_usd is not None and seen.budget_left_usd <= closing_usd(seen, place)
    if closing and not ends_in_it(seen, place):
        return GiveUp("budget", f"the budget is used up but for ${money(seen):.2f}")
    if (stuck := _stuck(seen, running)) is not None:
        return stuck
    if not place.spot:
        return leave_on_demand(seen, running, settings)
    can_be_safe = any(is_safe_place(seen, known) for known in seen.places)
    if can_be_safe and must_be_safe(seen, settings) and on_demand_makes_it(seen):
        reason = "the deadline is near, and a preemption would miss it: going on demand"
        return Move("deadline", reason, urgent=True)
    if running.reserve and reserve_is_going(seen, place, settings):
        reason = "a preemption would leave too little of the budget to finish: going on demand"
        return Move("budget", reason, urgent=True)
    return leave_spot(seen, running, settings)


def _stuck(seen: Observation, running: Running) -> Move | None:
    """Return the move away from a machine without progress, or None.

    The next such machine in a row gets twice the time, because its start may really be that slow. None gets the extra
    time once the dollars without progress are used up.
    """
    patience_h = STUCK_H * 2 ** min(seen.effort.stuck, MOST_DOUBLINGS)
    bears_it = seen.effort.usd + running.age_h * running.place.price_usd_per_hour < seen.effort.most_usd
    if running.stuck_h >= (patience_h if bears_it else STUCK_H):
        return Move("progress", f"no progress for {running.stuck_h * 60:.0f} min", urgent=True)
    if running.trained and running.uncommitted_h >= max(UNCOMMITTED_H, SAVES_MISSED * seen.save_every_h):
        return Move("progress", f"no step was committed for {running.uncommitted_h:.1f} h", urgent=True)
    return None


def _all_refused_just_now(places: Sequence[Known]) -> bool:
    """Since the last wait no place had anything."""
    return all(known.refused_h_ago is not None and known.refused_h_ago < FIRST_WAIT_H for known in places)
