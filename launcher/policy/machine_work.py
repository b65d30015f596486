"""What each machine of a run achieved: its start, its committed work, and effort without progress. Pure.

These rules apply whatever the prices, because a market or a set-up may behave unlike any table:

- Several machines in a row without a new committed step set their kind of place aside: a spot kind after four, on
  demand after three, a single zone after two if its kind has others. A spot kind may be tried again after half an hour,
  doubled for each further machine, up to four hours.
- A machine whose committed steps are worth less than a twentieth of its hours counts as having committed none: one step
  per machine is not progress.
- The run ends after twelve such machines in a row, or once they have cost as much as four hours on demand, or if on
  demand is set aside too.

If the tables are right, one spot machine in three dies before it has committed anything, so four in a row are bad luck
in one case out of eighty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from checkpoints.run_log.event_kinds import Saved, Training
from checkpoints.run_log.event_log import Event, of_kind
from launcher.policy.model import Effort, Paid, Place
from launcher.policy.run_history import MachineSpell, hours_of, hours_per_step, machines, on_machine

SPOT_IN_A_ROW, ON_DEMAND_IN_A_ROW, ZONE_IN_A_ROW = 4, 3, 2
"""Machines in a row without a new committed step after which their kind (or zone) is set aside."""
FIRST_REST_H, MOST_REST_H = 0.5, 4.0
"""How long a spot kind is set aside; doubled for each further machine without progress, up to four hours."""
MOST_IN_A_ROW = 12
MOST_HOURS = 4.0
"""Dollars allowed without a new committed step, as hours at the on-demand price."""
LEAST_SHARE = 0.05
"""Share of a machine's hours that its committed steps must be worth to count as progress."""
NEWEST_STARTS = 3
"""Number of newest starts whose slowest counts: a slow start may happen again."""
START_STEP = 1.15
"""Measured starts are rounded up to powers of this factor, so that the policy's tables are shared."""
NO_STARTS = frozenset({"no_progress", "never_ran"})
"""Ends of machines whose hours do not show how long a start takes: it hung, or the cloud never had it ready."""


class MachineWork(NamedTuple):
    """A machine, and what it achieved."""

    spell: MachineSpell
    trained: bool
    new_steps: int
    """Steps committed on it, beyond those committed before."""
    start_h: float | None
    """Hours from its request to its first new step."""


def machine_works(events: Sequence[Event]) -> list[MachineWork]:
    """Each machine of the run, oldest first."""
    spells = machines(events)
    works: list[MachineWork] = []
    before = 0
    for number, spell in enumerate(spells):
        its_events = on_machine(events, spells, number)
        committed = max((saved.step for _, saved in of_kind(its_events, Saved)), default=0)
        first = next((event.time for event, _ in of_kind(its_events, Training)), None)
        works.append(MachineWork(spell, first is not None, max(0, committed - before), _start_h(spell, first)))
        before = max(before, committed)
    return works


def _start_h(spell: MachineSpell, first_step: datetime | None) -> float | None:
    """The start as the strategy measured it; else by the machine's own clock, if that is plausible."""
    if spell.start_h is not None or first_step is None:
        return spell.start_h
    hours = hours_of(first_step - spell.since)
    return hours if hours > 0 and (spell.until is None or first_step <= spell.until) else None


def restart_h(works: Sequence[MachineWork], assumed_h: float, now: datetime) -> float:
    """Hours from the request of a machine to its first new step: measured, else assumed.

    A slower start than assumed is believed at once, for as long as it is among the newest starts; a faster one only
    gradually. A machine that has not trained yet shows that a start takes at least as long as its age.
    """
    starts = [work.start_h for work in works if work.start_h is not None]
    slowest = max(starts[-NEWEST_STARTS:], default=0.0)
    estimate = assumed_h
    if starts:
        newest = starts[-5:]
        estimate = max(slowest, (assumed_h + math.fsum(newest)) / (1 + len(newest)))
    for work in works[-NEWEST_STARTS:]:
        if not work.trained and work.spell.ended not in NO_STARTS:
            estimate = max(estimate, work.spell.used_h(now))
    steps = math.ceil(math.log(estimate / assumed_h) / math.log(START_STEP) - 1e-9) if assumed_h > 0 else 0
    return assumed_h * START_STEP**steps if assumed_h > 0 else estimate


def paid_at(works: Sequence[MachineWork], hours_each: float, now: datetime) -> Callable[[Place], Paid]:
    """Hours of the machines that have ended at a place, and of the work that they committed."""
    paid: dict[Place, Paid] = {}
    for work in works:
        if work.spell.until is not None:
            hours, worked_h = paid.get(work.spell.place, Paid())
            paid[work.spell.place] = Paid(hours + work.spell.hours(now), worked_h + work.new_steps * hours_each)
    return lambda place: paid.get(place, Paid())


def step_hours(events: Sequence[Event], assumed_h: float) -> float:
    """Hours per step: measured, else its share of the assumed hours; 0 until the number of steps is known."""
    total = max((training.total_steps for _, training in of_kind(events, Training)), default=0)
    return hours_per_step(events, assumed_h / total) if total else 0.0


class Streaks:
    """Machines of the newest launch without a new committed step: in a row, by kind, and by zone.

    With a new launch the user asks to try again, so only its own machines are passed here.
    """

    def __init__(
        self, works: Sequence[MachineWork], places: Sequence[Place], now: datetime, hours_each: float = 0.0
    ) -> None:
        """`hours_each`: hours per step; 0 = not known yet."""
        self._ended = [work for work in works if work.spell.until is not None]
        self._places, self._now, self._hours_each = places, now, hours_each

    def effort(self) -> Effort:
        """Effort since the last new committed step, and why no further machine may be paid for, if so."""
        row = self._trailing(self._ended)
        usd = math.fsum(work.spell.usd(self._now) for work in row)
        effort = Effort(len(row), usd, stuck=sum(work.spell.ended == "no_progress" for work in row))
        reason = f"{len(row)} machines in a row committed no new step, for ${usd:.2f}"
        effort = effort._replace(most_usd=self._most_usd())
        if len(row) >= MOST_IN_A_ROW or (len(row) > 1 and usd >= effort.most_usd):
            return effort._replace(exhausted=reason)
        on_demand = [place for place in self._places if not place.spot]
        if on_demand and all(math.isinf(self.rest_h(place)) for place in on_demand):
            return effort._replace(exhausted=f"{reason}, including on demand")
        return effort

    def _most_usd(self) -> float:
        on_demand = [place.price_usd_per_hour for place in self._places if not place.spot]
        prices = [place.price_usd_per_hour for place in self._places]
        return MOST_HOURS * (min(on_demand) if on_demand else max(prices, default=math.inf))

    def rest_h(self, place: Place) -> float:
        """Hours for which a place is still set aside."""
        kind = [work for work in self._ended if _kind(work.spell.place) == _kind(place)]
        if not place.spot:
            since_commit = [work for work in self._trailing(self._ended) if _kind(work.spell.place) == _kind(place)]
            return math.inf if len(since_commit) >= ON_DEMAND_IN_A_ROW else 0.0
        rest_h = self._rest_of(kind, SPOT_IN_A_ROW)
        if sum(_kind(other) == _kind(place) for other in self._places) > 1:
            rest_h = max(rest_h, self._rest_of([work for work in kind if work.spell.place == place], ZONE_IN_A_ROW))
        return rest_h

    def _trailing(self, works: Sequence[MachineWork]) -> list[MachineWork]:
        """The machines since the last one with progress."""
        row: list[MachineWork] = []
        for work in reversed(works):
            if self._is_progress(work):
                break
            row.append(work)
        return row[::-1]

    def _is_progress(self, work: MachineWork) -> bool:
        worked_h = work.new_steps * self._hours_each
        return work.new_steps > 0 and (not self._hours_each or worked_h >= LEAST_SHARE * work.spell.used_h(self._now))

    def _rest_of(self, works: Sequence[MachineWork], most: int) -> float:
        row = self._trailing(works)
        if len(row) < most or row[-1].spell.until is None:
            return 0.0
        rest_h = min(FIRST_REST_H * 2.0 ** (len(row) - most), MOST_REST_H)
        return max(0.0, rest_h - hours_of(self._now - row[-1].spell.until))


def _kind(place: Place) -> tuple[str, str, bool]:
    return place.cloud, place.gpus, place.spot
