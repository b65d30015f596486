"""From the run's diary to what the policy sees now: places, the work left, the spot market as this run has met it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from checkpoints.event_kinds import MachineUp, NoCapacity, Training
from checkpoints.events import Event, of_kind
from checkpoints.run import Heartbeat
from launcher.hazard import ON_DEMAND_H, assumed
from launcher.policy.experience import MarketCounts, counts_of, kind_of, tuned_chain, world_of
from launcher.policy.history import MachineSpell, hours_of, machine_now, machines, place_of, spent_usd, work_left_h
from launcher.policy.limits import Limits
from launcher.policy.market import UNSEEN_AGE_H, Chain, SpotMarket, mean_spell_h
from launcher.policy.model import Known, Observation, Place, Running
from launcher.policy.zones import MarketMet


def observe(
    events: Sequence[Event],
    heartbeat: Heartbeat | None,
    places: Sequence[Place],
    limits: Limits,
    now: datetime,
) -> Observation:
    """What the policy may know at `now`."""
    spells = machines(events)
    current = machine_now(spells)
    refused = _refused_at(events)
    spent = spent_usd(spells, now) + (hours_of(now - spells[0].since) * limits.store_usd_per_h if spells else 0.0)
    left = None if limits.budget_usd is None else limits.budget_usd - spent
    spot = [place for place in places if place.spot]
    learned = _churns(events, spot, limits, now, zones=len(spot))
    hazards = {place: 1 / _life_h(learned, [place], limits) for place in spot}
    return Observation(
        places=tuple(_known(place, spells, refused.get(place), hazards.get(place), now) for place in places),
        work_left_h=work_left_h(events, heartbeat, limits.hours, now),
        restart_h=limits.restart_h,
        running=_running(current, events, now) if current else None,
        deadline_h=None if limits.deadline is None else hours_of(limits.deadline - now),
        budget_left_usd=left,
        restores=bool(spells),
        store_usd_per_h=limits.store_usd_per_h,
        refusals_in_a_row=_refusals(events),
        moves_in_vain=_moves_in_vain(spells),
        hazard_per_h=1 / _life_h(learned, spot, limits),
        market=None if current or limits.deadline is None else _market(events, places, limits, now),
    )


def hours_to_preemption(
    events: Sequence[Event], places: Sequence[Place], limits: Limits, now: datetime, first: Place
) -> float:
    """Mean life of a machine in `first`, as far as it is known: what the trainer's save interval is chosen by."""
    if not first.spot:
        return ON_DEMAND_H
    spot = [place for place in places if place.spot]
    return _life_h(_churns(events, spot, limits, now, zones=len(spot)), [first], limits)


def _life_h(learned: Mapping[Place, float], spot: Sequence[Place], limits: Limits) -> float:
    """Of a machine in one of these zones, on average."""
    if limits.hazard_h is not None:
        return limits.hazard_h
    return mean_spell_h(world_of((learned[place] for place in spot), 1).machine_ends)


def _running(current: MachineSpell, events: Sequence[Event], now: datetime) -> Running:
    trained = any(event.time >= current.since for event, _ in of_kind(events, Training))
    return Running(current.place, hours_of(now - current.since), trained=trained)


def _known(
    place: Place, spells: Sequence[MachineSpell], refused: datetime | None, hazard_per_h: float | None, now: datetime
) -> Known:
    taken = [spell.until for spell in spells if spell.place == place and spell.ended == "preempted"]
    return Known(place, _ago(taken, now), _ago([refused], now), hazard_per_h=hazard_per_h)


def _refused_at(events: Sequence[Event]) -> dict[Place, datetime]:
    """When each place last had nothing."""
    return {place_of(place): event.time for event, refusal in of_kind(events, NoCapacity) for place in refusal.places}


def _market(events: Sequence[Event], places: Sequence[Place], limits: Limits, now: datetime) -> SpotMarket | None:
    """Spot as this run has met it: down since the first refusal in a row, else worth a try. None without a choice."""
    spot = [place for place in places if place.spot]
    if not spot or len(spot) == len(places):
        return None
    chain = _chain(events, spot, limits, now)
    refused_since: dict[Place, datetime] = {}
    for event in events:
        match event.payload:
            case MachineUp():
                refused_since.clear()
            case NoCapacity(places=refused):
                for place in refused:
                    refused_since.setdefault(place_of(place), event.time)
    if not all(place in refused_since for place in spot):
        return SpotMarket(chain, up=True, age_h=UNSEEN_AGE_H)
    return SpotMarket(chain, up=False, age_h=hours_of(now - max(refused_since[place] for place in spot)))


def _chain(events: Sequence[Event], spot: Sequence[Place], limits: Limits, now: datetime) -> Chain:
    """What the policy computes with; --hazard is taken as it is."""
    if limits.hazard_h is not None:
        return assumed(len(spot), limits.hazard_h).chain
    return tuned_chain(_churns(events, spot, limits, now, zones=1).values(), len(spot))


def _churns(
    events: Sequence[Event], spot: Sequence[Place], limits: Limits, now: datetime, *, zones: int
) -> dict[Place, float]:
    """Of each zone, by what this run and earlier ones have met there and in its market, as one of so many zones."""
    here = counts_of(events, now)
    met = {
        kind: here.get(kind, MarketCounts()).met(zones).plus(limits.met.get(kind, MarketMet()))
        for kind in {kind_of(place) for place in spot}
    }
    return {place: met[kind_of(place)].churn_in(place.area) for place in spot}


def _refusals(events: Sequence[Event]) -> int:
    """Rounds in which nobody that was asked had a machine, since the last one."""
    count = 0
    for event in events:
        match event.payload:
            case MachineUp():
                count = 0
            case NoCapacity():
                count += 1
    return count


def _moves_in_vain(spells: Sequence[MachineSpell]) -> int:
    count = 0
    for before, after in pairwise(spells):
        if before.ended == "moved" and before.place.spot == after.place.spot:
            count += 1
        elif after.place.spot:
            count = 0
    return count


def _ago(times: Sequence[datetime | None], now: datetime) -> float | None:
    known = [time for time in times if time is not None]
    return hours_of(now - max(known)) if known else None
