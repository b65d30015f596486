"""Build the policy's observation from the run's diary: places, the work left, the spot market as this run saw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from checkpoints.run_log.event_kinds import MachineUp, NoCapacity, Saved
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.event_order import of_newest_launch
from checkpoints.run_log.run_record import Heartbeat
from launcher.policy.limits import Limits
from launcher.policy.machine_work import MachineWork, Streaks, machine_works, paid_at, restart_h, step_hours
from launcher.policy.model import Observation, Place, PlaceState, Running
from launcher.policy.run_history import (
    MachineSpell,
    beat_on_machine,
    hours_of,
    machine_now,
    place_of,
    spent_usd,
    work_of,
)
from launcher.policy.spot.market import MOST_CHURN, UNSEEN_AGE_H, Chain, SpotMarket, mean_spell_h, world
from launcher.policy.spot.preemption_rates import ON_DEMAND_H, assumed
from launcher.policy.spot.statistics import MarketCounts, counts_of, kind_of, tuned_chain, world_of
from launcher.policy.spot.zone_pooling import MarketEnds

NEWEST_SAVES = 5
SAVE_H = 3 / 60
"""Duration of a save if neither the plan nor an earlier save provides one."""
LEAST_SAVE_H, SLOWER = 0.5 / 60, 1.5
"""Time reserved for a save: 1.5 times its usual duration, and half a minute."""
TEARDOWN_H = 1 / 60


class Signs(NamedTuple):
    """Signs of life from the current machine, by the strategy's own clock."""

    stuck_h: float = 0.0
    """Hours since a new step, or a new phase of its start."""
    uncommitted_h: float = 0.0
    """Hours since the last new committed step, or the first step."""


def observe(
    events: Sequence[Event],
    heartbeat: Heartbeat | None,
    places: Sequence[Place],
    limits: Limits,
    now: datetime,
    signs: Signs | None = None,
) -> Observation:
    """What the policy can observe at `now`. `signs`: signs of life from the current machine, as the caller saw them."""
    works = machine_works(events)
    spells = [work.spell for work in works]
    current = machine_now(spells)
    on_it = beat_on_machine(heartbeat, events, spells)
    work = work_of(events, on_it, limits.hours)
    restart = restart_h(works, limits.restart_h, now)
    save_h = _save_h(events, limits)
    streaks = Streaks(_of_this_launch(works, events), places, now, step_hours(events, limits.hours))
    spot = [place for place in places if place.spot]
    learned = _churns(events, spot, limits, now, zones=len(spot))
    return Observation(
        places=_place_states(events, works, places, limits, streaks, learned, now),
        work_left_h=work.left_h,
        restart_h=restart,
        running=_running(works[-1], restart, signs, now) if current else None,
        deadline_h=None if limits.deadline is None else hours_of(limits.deadline - now) - save_h,
        budget_left_usd=None if limits.budget_usd is None else limits.budget_usd - paid_usd(spells, limits, now),
        restores=bool(spells),
        store_usd_per_h=limits.store_usd_per_h,
        refusals_in_a_row=_refusals(events),
        failed_moves=_failed_moves(spells),
        unsaved_h=work.unsaved_h,
        measured=work.measured,
        whole_h=work.whole_h,
        closing_h=_closing_h(save_h, limits, trained=not current or works[-1].trained),
        save_h=save_h,
        save_every_h=limits.save_every_h,
        effort=streaks.effort(),
        hazard_per_h=1 / _life_h(learned, spot, limits),
        market=None if current or limits.deadline is None else _market(events, places, limits, now),
    )


def paid_usd(spells: Sequence[MachineSpell], limits: Limits, now: datetime) -> float:
    """What counts against the budget: machines, restores, and storage, also while there is no machine."""
    if not spells:
        return 0.0
    machine_h = sum(spell.hours(now) for spell in spells)
    pause_h = max(0.0, hours_of(now - spells[0].since) - machine_h)
    return spent_usd(spells, now) + machine_h * limits.store_usd_per_h + pause_h * limits.keep_usd_per_h


def _of_this_launch(works: Sequence[MachineWork], events: Sequence[Event]) -> list[MachineWork]:
    since = min(
        (event.time for event in of_newest_launch(events) if isinstance(event.payload, MachineUp)), default=None
    )
    return [work for work in works if since is not None and (work.spell.until is None or work.spell.until >= since)]


def _save_h(events: Sequence[Event], limits: Limits) -> float:
    """Duration of a save: the slowest of the newest ones; before the first, the plan's."""
    newest = [saved.upload_s + saved.commit_s for _, saved in of_kind(events, Saved)][-NEWEST_SAVES:]
    planned_h = SAVE_H if limits.save_h is None else limits.save_h
    return max(newest) / 3600 if newest else planned_h


def _closing_h(save_h: float, limits: Limits, *, trained: bool) -> float:
    """A check, a save and the teardown; during set-up there is nothing to save."""
    last_h = LEAST_SAVE_H + SLOWER * save_h if trained else 0.0
    return limits.settings.check_h + last_h + TEARDOWN_H


def _place_states(
    events: Sequence[Event],
    works: Sequence[MachineWork],
    places: Sequence[Place],
    limits: Limits,
    streaks: Streaks,
    learned: Mapping[Place, float],
    now: datetime,
) -> tuple[PlaceState, ...]:
    refused, out = _refused_at(events), _out_since(events)
    paid = paid_at(works, step_hours(events, limits.hours), now)
    return tuple(
        PlaceState(
            place,
            preempted_h_ago=_ago(_taken_at(works, place), now),
            refused_h_ago=_ago([refused.get(place)], now),
            out_h=_ago([out.get(place)], now),
            rest_h=streaks.rest_h(place),
            paid=paid(place),
            hazard_per_h=_hazard_at(learned[place], limits) if place.spot else None,
        )
        for place in places
    )


def _taken_at(works: Sequence[MachineWork], place: Place) -> list[datetime | None]:
    return [work.spell.until for work in works if work.spell.place == place and work.spell.ended == "preempted"]


def _hazard_at(churn: float, limits: Limits) -> float:
    """Preemptions per machine hour there.

    The measured churn has no upper bound: a zone may be rougher than any table.
    """
    if limits.hazard_h is not None:
        return 1 / limits.hazard_h
    bounded = max(churn, math.exp(-MOST_CHURN))
    return 1 / mean_spell_h(world(bounded, 1).machine_ends)


def hours_to_preemption(
    events: Sequence[Event], places: Sequence[Place], limits: Limits, now: datetime, first: Place
) -> float:
    """Mean life of a machine in `first`, as far as it is known: the trainer's save interval depends on it."""
    if not first.spot:
        return ON_DEMAND_H
    spot = [place for place in places if place.spot]
    return _life_h(_churns(events, spot, limits, now, zones=len(spot)), [first], limits)


def _life_h(learned: Mapping[Place, float], spot: Sequence[Place], limits: Limits) -> float:
    """Mean life of a machine in these zones."""
    if limits.hazard_h is not None:
        return limits.hazard_h
    return mean_spell_h(world_of((learned[place] for place in spot), 1).machine_ends)


def _running(current: MachineWork, restart: float, signs: Signs | None, now: datetime) -> Running:
    age_h = hours_of(now - current.spell.since)
    return Running(
        replace(current.spell.place, price_usd_per_hour=current.spell.usd_per_hour),
        age_h,
        restart_left_h=0.0 if current.trained else max(0.0, restart - age_h),
        trained=current.trained,
        start_h=current.start_h or 0.0,
        stuck_h=signs.stuck_h if signs else 0.0,
        uncommitted_h=signs.uncommitted_h if signs else 0.0,
        reserve=current.spell.reserve,
    )


def _out_since(events: Sequence[Event]) -> dict[Place, datetime]:
    """When each place first refused since the run's last machine."""
    since: dict[Place, datetime] = {}
    for event in events:
        match event.payload:
            case MachineUp():
                since.clear()
            case NoCapacity(places=refused):
                for place in refused:
                    since.setdefault(place_of(place), event.time)
    return since


def _refused_at(events: Sequence[Event]) -> dict[Place, datetime]:
    """When each place last refused."""
    return {place_of(place): event.time for event, refusal in of_kind(events, NoCapacity) for place in refusal.places}


def _market(events: Sequence[Event], places: Sequence[Place], limits: Limits, now: datetime) -> SpotMarket | None:
    """The spot market as this run saw it: down since its refusals, else worth a try. None without a choice."""
    spot = [place for place in places if place.spot]
    if not spot or len(spot) == len(places):
        return None
    chain = _chain(events, spot, limits, now)
    refused_since = _out_since(events)
    if not all(place in refused_since for place in spot):
        return SpotMarket(chain, up=True, age_h=UNSEEN_AGE_H)
    return SpotMarket(chain, up=False, age_h=hours_of(now - max(refused_since[place] for place in spot)))


def _chain(events: Sequence[Event], spot: Sequence[Place], limits: Limits, now: datetime) -> Chain:
    """The chain that the policy computes with; `--hazard` is used unchanged."""
    if limits.hazard_h is not None:
        return assumed(len(spot), limits.hazard_h).chain
    return tuned_chain(_churns(events, spot, limits, now, zones=1).values(), len(spot))


def _churns(
    events: Sequence[Event], spot: Sequence[Place], limits: Limits, now: datetime, *, zones: int
) -> dict[Place, float]:
    """Each zone's churn, from what this run and earlier ones saw there and in its market, as one of `zones` zones."""
    here = counts_of(events, now)
    spell_ends = {
        kind: here.get(kind, MarketCounts()).spell_ends(zones).plus(limits.spell_ends.get(kind, MarketEnds()))
        for kind in {kind_of(place) for place in spot}
    }
    return {place: spell_ends[kind_of(place)].churn_in(place.area) for place in spot}


def _refusals(events: Sequence[Event]) -> int:
    """Search rounds without a machine since the last machine."""
    count = 0
    for event in events:
        match event.payload:
            case MachineUp():
                count = 0
            case NoCapacity():
                count += 1
    return count


def _failed_moves(spells: Sequence[MachineSpell]) -> int:
    count = 0
    for before, after in pairwise(spells):
        if before.ended == "moved" and after.place.price_usd_per_hour >= before.place.price_usd_per_hour:
            count += 1
        elif after.place.spot:
            count = 0
    return count


def _ago(times: Sequence[datetime | None], now: datetime) -> float | None:
    past = [time for time in times if time is not None]
    return hours_of(now - max(past)) if past else None
