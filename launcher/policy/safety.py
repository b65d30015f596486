"""What deadline and budget keep in reserve: the way to the end on demand, after one more preemption. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher.policy.model import Known, Observation, Place
from launcher.policy.settings import ROUNDING_H, Settings
from launcher.policy.work_price import restart_usd

LATE_SHARE = 0.2
"""Of the whole work: a deadline that is missed by no more than this, or a restart, on paper still binds. Speeds and
starts are estimates, so being a minute late on paper is no reason to stop hurrying."""
UNMEASURED_SHARE, UNMEASURED_START_H = 0.25, 0.75
"""More work than planned, and a longer start, that a run allows for before it has trained anywhere."""
SHORT_SHARE = 0.1
"""Of the way to the end on demand: a budget that is short by no more than this on paper may still reach, because speeds
and starts are estimates. Once it is used up the run ends anyway, its state saved."""
LAST_H = 2 / 60
"""For a look and the teardown after the last save."""
USD_MARGIN = 0.02
"""Of the way to the end on demand that a budget keeps in reserve: speeds are estimates."""


def must_be_safe(seen: Observation, settings: Settings) -> bool:
    """Would one more preemption on spot miss a deadline that on demand could still meet?

    A preemption loses what is not committed, so steps since the last commit are not done steps here.
    """
    if seen.deadline_h is None:
        return False
    start_h = seen.running.restart_left_h if seen.running else seen.restart_h
    to_end_h = start_h + seen.work_left_h
    if seen.restores and seen.running is None:  # one spot machine told no speed: the next one has to be certain
        to_end_h += unmeasured_h(seen)
    if to_end_h <= min(settings.check_h, seen.deadline_h):
        return False  # done before the next look
    return seen.deadline_h < to_end_h + seen.unsaved_h + kept_h(seen.restart_h, settings) - ROUNDING_H


def unmeasured_h(seen: Observation) -> float:
    """What the way to the end may take beyond the plan, as far as this run knows."""
    return 0.0 if seen.measured else UNMEASURED_SHARE * seen.work_left_h + UNMEASURED_START_H


def kept_h(restart_h: float, settings: Settings) -> float:
    """Of the slack, for one preemption: what a run on spot has to have left, beyond the start of its machine."""
    return (1 + settings.margin) * restart_h + settings.margin * settings.check_h


def on_demand_makes_it(seen: Observation) -> bool:
    """From now on, without a machine of the run's own."""
    return seen.deadline_h is not None and seen.deadline_h >= seen.work_left_h + seen.restart_h - ROUNDING_H


def still_binds(seen: Observation) -> bool:
    """Is the deadline kept, or missed by so little on paper that the run still hurries?"""
    if seen.deadline_h is None:
        return False
    start_h = seen.running.restart_left_h if seen.running else seen.restart_h
    late_h = seen.work_left_h + start_h - seen.deadline_h
    return late_h <= max(seen.restart_h, LATE_SHARE * max(seen.work_left_h, seen.whole_h)) + ROUNDING_H


def is_tight(seen: Observation, needed_h: float) -> bool:
    """A deadline that still binds, but has no room for something that needs that many hours to the end."""
    return still_binds(seen) and seen.deadline_h is not None and seen.deadline_h < needed_h


def is_safe_place(seen: Observation, known: Known) -> bool:
    """On demand, payable, not set aside, and not sold out just now: else a move would only lose a good spot machine."""
    just_refused = known.refused_h_ago is not None and known.refused_h_ago <= seen.restart_h
    return not known.place.spot and not just_refused and known.rest_h <= 0 and payable(seen, known.place)


def payable(seen: Observation, place: Place) -> bool:
    """Does the budget reach to the end there?"""
    share = 1.0 if place.spot else 1 - SHORT_SHARE
    return seen.budget_left_usd is None or share * cost_to_end(seen, place) <= seen.budget_left_usd


def cost_to_end(seen: Observation, place: Place) -> float:
    """Of a machine that is started there now and not taken away, its last save included."""
    hours = seen.work_left_h + seen.restart_h + seen.save_h
    restore_usd = place.restore_usd if seen.restores else 0.0
    return hours * (place.price_usd_per_hour + seen.store_usd_per_h) + restore_usd


def money(seen: Observation) -> float:
    """What is left of the budget."""
    return max(0.0, seen.budget_left_usd or 0.0)


def ends_in_it(seen: Observation, place: Place) -> bool:
    """Will the run on this machine be done, and its last save made, before the budget is used up?

    Closing the machine now would then take the same save and gain nothing.
    """
    if seen.running is None or not seen.running.trained:
        return False
    hours = seen.work_left_h + seen.save_h + LAST_H
    return hours * (place.price_usd_per_hour + seen.store_usd_per_h) <= money(seen)


def closing_usd(seen: Observation, place: Place) -> float:
    """What a machine there costs from the decision to give it back until it is gone."""
    return seen.closing_h * (place.price_usd_per_hour + seen.store_usd_per_h)


def reserve_usd(seen: Observation, places: Sequence[Known]) -> float:
    """The way to the end on demand, from the last commit on; infinite where no such machine can be had."""
    safe = [known.place for known in places if is_safe_place(seen, known)]
    lost_usd = min((seen.unsaved_h * place.price_usd_per_hour for place in safe), default=0.0)
    return min((cost_to_end(seen, place) for place in safe), default=math.inf) * (1 + USD_MARGIN) + lost_usd


def bears_a_start(seen: Observation, place: Place, places: Sequence[Known]) -> bool:
    """Could the way to the end on demand still be paid after a machine here that brings nothing?"""
    if seen.budget_left_usd is None:
        return True
    start_usd = restart_usd(seen, place) + closing_usd(seen, place)
    return seen.budget_left_usd - start_usd >= reserve_usd(seen, places)


def within_reserve(seen: Observation, payables: Sequence[Known]) -> list[Known]:
    """The places that leave the way to the end on demand payable; all where the budget can't pay that anyway."""
    if seen.budget_left_usd is None or reserve_usd(seen, payables) > seen.budget_left_usd:
        return list(payables)
    return [known for known in payables if not known.place.spot or bears_a_start(seen, known.place, payables)]


def reserve_is_going(seen: Observation, place: Place, settings: Settings) -> bool:
    """On spot: would another look, and then a preemption, leave too little for the way to the end on demand?"""
    if seen.budget_left_usd is None or not math.isfinite(needed := reserve_usd(seen, seen.places)):
        return False
    look_usd = settings.check_h * place.price_usd_per_hour + closing_usd(seen, place)
    return seen.budget_left_usd >= needed and seen.budget_left_usd - look_usd < needed
