"""The policy: cheapest spot first, on demand where there is none or where the deadline wants it, back to spot later.

It never lets a spot machine run into the time that an on-demand machine needs to make the deadline, and starts nothing
that the budget can't pay to its end. With a deadline and a view of the spot market, what the slack is worth decides
between waiting, spot and on demand (outlook.py); without a deadline nobody waits while on demand has a machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.policy.market import Chain, SpotMarket
from launcher.policy.model import Action, GiveUp, Known, Launch, Move, Observation, Place, Running, Stay, Wait
from launcher.policy.outlook import NO_RESTORES, Outlook, Problem, Restores, solve, step_of

FIRST_WAIT_H = 1 / 60
LONGEST_WAIT_H = 5 / 60
WAIT_GROWTH = 1.6
"""Between rounds in which nobody had a machine: SkyPilot's own back-off, so that we are never slower."""
FINER = 3
"""Grid points of slack and work in a step of the table: worth 0.04 % of the cost in replays, more are worth nothing."""
ROUNDING_H = 1e-9
"""Sums of hours that are equal on paper may differ by so much."""


@dataclass(frozen=True)
class Settings:
    """What the user may turn."""

    return_h: float = 0.5
    """How long to stay on demand before spot is tried again; doubled after each try in vain."""
    cool_h: float = 1.0
    """A place that took a machine away goes last for so long: preemptions come in clusters."""
    check_h: float = 1 / 60
    """Time between two looks at a running machine."""
    margin: float = 1.0
    """What is kept of the time to a deadline beyond what one preemption takes, as a share of a restart and a look:
    machines start late and speeds are estimates. 0 where time is exact, as in a replay."""


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
    payable = [known for known in seen.places if _payable(seen, known.place)]
    if not payable:
        cheapest = min((known.place for known in seen.places), key=lambda place: place.price_usd_per_hour)
        return GiveUp(
            "budget",
            f"the budget has ${_money(seen):.2f} left, and the cheapest way to the end is "
            f"${_cost_to_end(seen, cheapest):.2f} ({cheapest})",
        )
    worth = _worth_their_price(seen, payable)
    if _all_refused_just_now(worth):
        return Wait(_back_off_h(seen), "sold_out", f"none of the {len(worth)} places has a machine")
    if seen.market is not None and _on_demand_makes_it(seen):
        return _by_outlook(seen, seen.market, worth, settings)
    hurry = _must_be_safe(seen, settings) and _on_demand_makes_it(seen)
    order = sorted(worth, key=lambda known: _rank(seen, known, settings, on_demand_first=hurry))
    places = tuple(known.place for known in order)
    if hurry:
        return Launch(places, "deadline", "the deadline is near: on demand first")
    return Launch(places, "cheapest", "cheapest first, places that were just taken away last")


def _while_running(seen: Observation, running: Running, settings: Settings) -> Action:
    place = running.place
    # One look and one restart's time is what it takes until the machine is really given back.
    closing_h = settings.check_h + min(seen.restart_h, 5 / 60)
    closing_usd = closing_h * (place.price_usd_per_hour + seen.store_usd_per_h)
    if seen.budget_left_usd is not None and seen.budget_left_usd <= closing_usd:
        return GiveUp("budget", f"the budget is used up but for ${_money(seen):.2f}")
    if place.spot:
        can_be_safe = any(_is_safe_place(seen, known) for known in seen.places)
        if can_be_safe and _must_be_safe(seen, settings) and _on_demand_makes_it(seen):
            reason = "the deadline is near, and a preemption would miss it: going on demand"
            return Move("deadline", reason, urgent=True)
        return _leave_dear_spot(seen, running, settings)
    if not running.trained:
        return Stay()  # it is still being set up: what was paid for that would buy nothing
    if seen.market is not None and seen.deadline_h is not None:
        return _leave_on_demand(seen, seen.market, settings)
    return _back_to_spot(seen, running, settings)


def _leave_dear_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    """A spot machine that was taken while on demand was sold out, or whose price has risen since."""
    on_demand = [known.place for known in seen.places if _is_safe_place(seen, known)]
    best = min(on_demand, key=lambda place: place.price_usd_per_hour, default=None)
    if best is None or not running.trained or running.age_h < settings.return_h * 2**seen.moves_in_vain:
        return Stay()
    if _is_tight(seen, seen.work_left_h + 2 * seen.restart_h + settings.check_h):
        return Stay()  # where it would be made here, a move in vain may miss it
    here = next((known for known in seen.places if known.place == running.place), Known(running.place))
    saved = seen.work_left_h * (_spot_usd(seen, here) - best.price_usd_per_hour)
    # Where it is sold out again, there was a restart for nothing.
    if saved <= _restart_usd(seen, running.place) + _restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _back_to_spot(seen: Observation, running: Running, settings: Settings) -> Action:
    payable = [known for known in seen.places if _payable(seen, known.place)]
    spot = [
        known for known in payable if known.place.spot and _spot_usd(seen, known) < running.place.price_usd_per_hour
    ]
    if not spot or running.age_h < settings.return_h * 2**seen.moves_in_vain:
        return Stay()
    if _is_tight(seen, seen.work_left_h + 3 * seen.restart_h + settings.check_h):
        return Stay()  # time for a move in vain, and for a preemption after a good one; a lost deadline binds nobody
    best = min(spot, key=lambda known: _spot_usd(seen, known)).place
    saved = seen.work_left_h * (running.place.price_usd_per_hour - best.price_usd_per_hour)
    # In vain it costs a restart on demand, and a good one costs a restart on spot and most likely a preemption.
    if saved <= _restart_usd(seen, running.place) + 2 * _restart_usd(seen, best):
        return Stay()
    return Move("cheaper", f"{best} would save ${saved:.2f} on the rest")


def _is_tight(seen: Observation, needed_h: float) -> bool:
    """A deadline that can be made still, but not with so much time more."""
    return seen.deadline_h is not None and seen.work_left_h - ROUNDING_H <= seen.deadline_h < needed_h


def _by_outlook(seen: Observation, market: SpotMarket, payable: list[Known], settings: Settings) -> Action:
    """Without a machine, when spot can be seen and there is a deadline: what the slack is worth decides."""
    spot = [known for known in payable if known.place.spot and not _still_refused(seen, known)]
    slack_h = (seen.deadline_h or 0.0) - seen.work_left_h
    can_wait = slack_h - settings.check_h >= (1 + settings.margin) * seen.restart_h - ROUNDING_H
    too_late_for_spot = _must_be_safe(seen, settings)  # and waiting doesn't make it any earlier
    wait_h = _until_asked_again_h(seen, payable, settings)
    wait = Wait(wait_h, "slack_enough", f"{slack_h:.1f} h of slack are enough to wait for spot")
    if all(known.place.spot for known in payable):
        return Launch(_best_spot(seen, spot, market, settings), "cheapest", "cheapest first") if spot else wait
    order = sorted(payable, key=lambda known: _rank(seen, known, settings, on_demand_first=True))
    on_demand = tuple(known.place for known in order)
    buy = Launch(on_demand, "slack_short", "the slack is worth less than on demand costs")
    if not any(known.place.spot for known in payable):
        return buy  # none that is worth its price: nothing to wait for
    outlook = _outlook(seen, market, settings)
    if too_late_for_spot or slack_h <= outlook.at(outlook.buy, seen.work_left_h, market):
        return buy
    visible = any(known.up_h is not None for known in spot)
    early = visible and slack_h > outlook.at(outlook.wait, seen.work_left_h, market)
    if spot and not early:
        best = _best_spot(seen, spot, market, settings)
        return Launch(best, "slack_enough", "spot is there, and the slack bears a preemption")
    return wait if can_wait else buy


def _leave_on_demand(seen: Observation, market: SpotMarket, settings: Settings) -> Action:
    outlook = _outlook(seen, market, settings)
    slack_h = (seen.deadline_h or 0.0) - seen.work_left_h
    if not _on_demand_makes_it(seen) or slack_h <= outlook.at(outlook.keep, seen.work_left_h, market):
        return Stay()
    return Move("slack_enough", f"{slack_h:.1f} h of slack are worth a change to spot")


def _outlook(seen: Observation, market: SpotMarket, settings: Settings) -> Outlook:
    spot, on_demand = (_cheapest(seen, spot=spot) for spot in (True, False))
    price, restores = 1.0, NO_RESTORES
    if spot and on_demand:
        price = spot.price_usd_per_hour / on_demand.price_usd_per_hour
        restores = Restores(*(place.restore_usd / on_demand.price_usd_per_hour for place in (spot, on_demand)))
    slack_h = (seen.deadline_h or 0.0) - seen.work_left_h
    return outlook_for(seen.work_left_h, slack_h, seen.restart_h, price, market.chain, settings, restores)


def _cheapest(seen: Observation, *, spot: bool) -> Place | None:
    places = (known.place for known in seen.places if known.place.spot == spot)
    return min(places, key=lambda place: (place.price_usd_per_hour, place.restore_usd), default=None)


def outlook_for(
    work_h: float,
    slack_h: float,
    restart_h: float,
    spot_price: float,
    chain: Chain,
    settings: Settings,
    restores: Restores = NO_RESTORES,
) -> Outlook:
    """The table for the work and the slack that are left, rounded up: it is shared, and covers all that comes later.

    `spot_price` and `restores` are ratios to the on-demand price.
    """
    work_h = _round_up(work_h)
    deadline_h = work_h + _round_up(max(0.0, slack_h))
    step_h = step_of(deadline_h, settings.check_h)
    return solve(Problem(work_h, deadline_h, restart_h, spot_price, step_h, chain, FINER, restores))


def _round_up(hours: float) -> float:
    """To the next of 0.75, 6, 48, 384 ... hours."""
    return float(0.75 * 8 ** math.ceil(math.log(max(hours / 0.75, 1.0), 8) - ROUNDING_H))


def _best_spot(seen: Observation, spot: list[Known], market: SpotMarket, settings: Settings) -> tuple[Place, ...]:
    """By the price of an hour of work, preemptions included; of equals the one that has held for longest."""

    def per_hour_of_work(known: Known) -> tuple[bool, float, float, str]:
        place, hazard_per_h = known.place, _hazard_per_h(seen, known)
        if known.up_h is not None:
            hazard_per_h = market.chain.ends_at(known.up_h) * known.churn
        price = work_hour_usd(place.price_usd_per_hour, hazard_per_h, seen.restart_h, place.restore_usd)
        return _taken_away(known, settings), price, -(known.up_h or 0.0), known.place.where

    return tuple(known.place for known in sorted(spot, key=per_hour_of_work))


def _must_be_safe(seen: Observation, settings: Settings) -> bool:
    """Would one more preemption on spot miss a deadline that on demand could still meet?"""
    if seen.deadline_h is None:
        return False
    start_h = seen.running.restart_left_h if seen.running else seen.restart_h
    to_end_h = start_h + seen.work_left_h
    if to_end_h <= min(settings.check_h, seen.deadline_h):
        return False  # done before the next look
    return seen.deadline_h < to_end_h + kept_h(seen.restart_h, settings) - ROUNDING_H


def kept_h(restart_h: float, settings: Settings) -> float:
    """Of the slack, for one preemption: what a run on spot has to have left, beyond the start of its machine."""
    return (1 + settings.margin) * restart_h + settings.margin * settings.check_h


def _is_safe_place(seen: Observation, known: Known) -> bool:
    """On demand, payable, and not sold out just now: else a move would only throw a good spot machine away."""
    just_refused = known.refused_h_ago is not None and known.refused_h_ago <= seen.restart_h
    return not known.place.spot and not just_refused and _payable(seen, known.place)


def _on_demand_makes_it(seen: Observation) -> bool:
    return seen.deadline_h is not None and seen.deadline_h >= seen.work_left_h + seen.restart_h - ROUNDING_H


def work_hour_usd(price_usd_per_hour: float, hazard_per_h: float, restart_h: float, restore_usd: float = 0.0) -> float:
    """What an hour of work on spot comes to: each preemption costs a restart, too, and a checkpoint's way there."""
    return price_usd_per_hour + hazard_per_h * (restart_h * price_usd_per_hour + restore_usd)


def _hazard_per_h(seen: Observation, known: Known) -> float:
    return seen.hazard_per_h if known.hazard_per_h is None else known.hazard_per_h


def _spot_usd(seen: Observation, known: Known) -> float:
    place, hazard_per_h = known.place, _hazard_per_h(seen, known)
    return work_hour_usd(place.price_usd_per_hour, hazard_per_h, seen.restart_h, place.restore_usd)


def _restart_usd(seen: Observation, place: Place) -> float:
    return seen.restart_h * place.price_usd_per_hour + place.restore_usd


def _worth_their_price(seen: Observation, payable: list[Known]) -> list[Known]:
    """Without the spot places that are no cheaper than a machine on demand that can be had."""
    on_demand = [known.place for known in payable if not known.place.spot and not _refused_of_late(known)]
    on_demand_usd = min((place.price_usd_per_hour for place in on_demand), default=math.inf)
    return [known for known in payable if not known.place.spot or _spot_usd(seen, known) < on_demand_usd]


def _payable(seen: Observation, place: Place) -> bool:
    return seen.budget_left_usd is None or _cost_to_end(seen, place) <= seen.budget_left_usd


def _cost_to_end(seen: Observation, place: Place) -> float:
    hours = seen.work_left_h + seen.restart_h
    restore_usd = place.restore_usd if seen.restores else 0.0
    return hours * (place.price_usd_per_hour + seen.store_usd_per_h) + restore_usd


def _money(seen: Observation) -> float:
    return max(0.0, seen.budget_left_usd or 0.0)


def _all_refused_just_now(places: list[Known]) -> bool:
    """Since the last wait nobody had anything."""
    return all(known.refused_h_ago is not None and known.refused_h_ago < FIRST_WAIT_H for known in places)


def _still_refused(seen: Observation, known: Known) -> bool:
    """It had nothing, and it is too early to ask again."""
    return known.refused_h_ago is not None and known.refused_h_ago < _back_off_h(seen)


def _back_off_h(seen: Observation) -> float:
    return float(min(FIRST_WAIT_H * WAIT_GROWTH ** max(0, seen.refusals_in_a_row - 1), LONGEST_WAIT_H))


def _until_asked_again_h(seen: Observation, places: list[Known], settings: Settings) -> float:
    """Until the first spot place may be asked again; one look where none was refused."""
    ago = [known.refused_h_ago for known in places if known.place.spot and known.refused_h_ago is not None]
    return max(settings.check_h, _back_off_h(seen) - max(ago, default=0.0)) if ago else settings.check_h


def _taken_away(known: Known, settings: Settings) -> bool:
    return known.preempted_h_ago is not None and known.preempted_h_ago < settings.cool_h


def _refused_of_late(known: Known) -> bool:
    return known.refused_h_ago is not None and known.refused_h_ago < LONGEST_WAIT_H


def _rank(
    seen: Observation, known: Known, settings: Settings, *, on_demand_first: bool
) -> tuple[bool, bool, bool, float, str]:
    """Spot by the price of an hour of work, preemptions included."""
    place, refused = known.place, _refused_of_late(known)
    price = _spot_usd(seen, known) if place.spot else place.price_usd_per_hour
    return place.spot == on_demand_first, _taken_away(known, settings), refused, price, place.where
