"""What deadline and budget keep in reserve: enough to finish on demand after one more preemption. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.model import Observation, Place, PlaceState
from launcher.policy.settings import ROUNDING_H, Settings
from launcher.policy.work_price import restart_usd

LATE_SHARE = 0.2
"""Share of the whole work: a deadline missed on paper by no more than this, or by a restart, is still pursued. Speeds
and starts are estimates, so being a minute late on paper is not a reason to stop hurrying."""
UNMEASURED_SHARE, UNMEASURED_START_H = 0.25, 0.75
"""Extra work and a longer start that are allowed for before the run has trained anywhere."""
SHORT_SHARE = 0.1
"""Share of the cost of finishing on demand: a budget that falls short by no more than this on paper may still suffice,
because speeds and starts are estimates. Once it is used up the run ends anyway, with its state saved."""
LAST_H = 2 / 60
"""Time for a check and the teardown after the last save."""
USD_MARGIN = 0.02
"""Extra share of the cost of finishing on demand that is kept in reserve: speeds are estimates."""


def must_be_safe(seen: Observation, settings: Settings) -> bool:
    """Would one more preemption on spot miss a deadline that on demand could still meet?

    A preemption loses what is not committed, so steps since the last commit don't count as done here.
    """
    if seen.deadline_h is None:
        return False
    start_h = seen.running.restart_left_h if seen.running else seen.restart_h
    to_end_h = start_h + seen.work_left_h
    if seen.restores and seen.running is None:  # no speed was measured on spot: be certain with the next machine
        to_end_h += unmeasured_h(seen)
    if to_end_h <= min(settings.check_h, seen.deadline_h):
        return False  # done before the next check
    return seen.deadline_h < to_end_h + seen.unsaved_h + kept_h(seen.restart_h, settings) - ROUNDING_H


def unmeasured_h(seen: Observation) -> float:
    """Time that finishing may take beyond the plan, as long as the run's speed is not measured."""
    return 0.0 if seen.measured else UNMEASURED_SHARE * seen.work_left_h + UNMEASURED_START_H


def kept_h(restart_h: float, settings: Settings) -> float:
    """Slack reserved for one preemption: what a run on spot must have left, beyond the start of its machine."""
    return (1 + settings.margin) * restart_h + settings.margin * settings.check_h


def on_demand_in_time(seen: Observation) -> bool:
    """Can a new on-demand machine still meet the deadline?"""
    return seen.deadline_h is not None and seen.deadline_h >= seen.work_left_h + seen.restart_h - ROUNDING_H


def still_binds(seen: Observation) -> bool:
    """Will the deadline be met, or missed by so little on paper that the run should still hurry?"""
    if seen.deadline_h is None:
        return False
    start_h = seen.running.restart_left_h if seen.running else seen.restart_h
    late_h = seen.work_left_h + start_h - seen.deadline_h
    return late_h <= max(seen.restart_h, LATE_SHARE * max(seen.work_left_h, seen.whole_h)) + ROUNDING_H


def is_tight(seen: Observation, needed_h: float) -> bool:
    """Does the deadline still bind, but leave too little time for a plan that takes `needed_h` to the end?"""
    return still_binds(seen) and seen.deadline_h is not None and seen.deadline_h < needed_h


def is_safe_place(seen: Observation, state: PlaceState) -> bool:
    """Is it on demand, payable, not set aside and not just sold out? If not, a move would only lose a spot machine."""
    just_refused = state.refused_h_ago is not None and state.refused_h_ago <= seen.restart_h
    return not state.place.spot and not just_refused and state.rest_h <= 0 and payable(seen, state.place)


def payable(seen: Observation, place: Place) -> bool:
    """Is the budget enough to finish there?"""
    share = 1.0 if place.spot else 1 - SHORT_SHARE
    return seen.budget_left_usd is None or share * cost_to_end(seen, place) <= seen.budget_left_usd


def cost_to_end(seen: Observation, place: Place) -> float:
    """Cost of finishing on a machine started there now and never preempted, including the last save."""
    hours = seen.work_left_h + seen.restart_h + seen.save_h
    restore_usd = place.restore_usd if seen.restores else 0.0
    return hours * (place.price_usd_per_hour + seen.store_usd_per_h) + restore_usd


def money(seen: Observation) -> float:
    """The remaining budget."""
    return max(0.0, seen.budget_left_usd or 0.0)


def finishes_within_budget(seen: Observation, place: Place) -> bool:
    """Will the run finish on this machine, including its last save, before the budget is used up?

    Closing the machine now would then need the same save and gain nothing.
    """
    if seen.running is None or not seen.running.trained:
        return False
    hours = seen.work_left_h + seen.save_h + LAST_H
    return hours * (place.price_usd_per_hour + seen.store_usd_per_h) <= money(seen)


def closing_usd(seen: Observation, place: Place) -> float:
    """Cost of a machine there from the decision to release it until it is gone."""
    return seen.closing_h * (place.price_usd_per_hour + seen.store_usd_per_h)


def reserve_usd(seen: Observation, places: Sequence[PlaceState]) -> float:
    """Cost of finishing on demand from the last commit; infinite if no such machine is available."""
    safe = [state.place for state in places if is_safe_place(seen, state)]
    lost_usd = min((seen.unsaved_h * place.price_usd_per_hour for place in safe), default=0.0)
    return min((cost_to_end(seen, place) for place in safe), default=math.inf) * (1 + USD_MARGIN) + lost_usd


def can_afford_start(seen: Observation, place: Place, places: Sequence[PlaceState]) -> bool:
    """Could the budget still pay for finishing on demand after a machine here that achieves nothing?"""
    if seen.budget_left_usd is None:
        return True
    start_usd = restart_usd(seen, place) + closing_usd(seen, place)
    return seen.budget_left_usd - start_usd >= reserve_usd(seen, places)


def within_reserve(seen: Observation, payables: Sequence[PlaceState]) -> list[PlaceState]:
    """The places that leave enough to finish on demand; all of them if the budget can't pay for that anyway."""
    if seen.budget_left_usd is None or reserve_usd(seen, payables) > seen.budget_left_usd:
        return list(payables)
    return [state for state in payables if not state.place.spot or can_afford_start(seen, state.place, payables)]


def reserve_at_risk(seen: Observation, place: Place, settings: Settings) -> bool:
    """On spot: would a preemption at the next check leave too little to finish on demand?"""
    if seen.budget_left_usd is None or not math.isfinite(needed := reserve_usd(seen, seen.places)):
        return False
    look_usd = settings.check_h * place.price_usd_per_hour + closing_usd(seen, place)
    return seen.budget_left_usd >= needed and seen.budget_left_usd - look_usd < needed
