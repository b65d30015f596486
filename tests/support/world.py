"""One run in a made-up market, decided step by step by `policy.decide` itself: the check on launcher/planning/monte_carlo.py.

Slow and simple on purpose: plain floats, one run, a look every few minutes, no array and no table lookup of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from launcher.policy.decide import decide
from launcher.policy.model import Launch, Move, Observation, Place, PlaceState, Running, Wait
from launcher.policy.settings import Settings
from launcher.policy.spot.market import UNSEEN_AGE_H, Chain, Rates, SpotMarket, age_bin, mean_spell_h

SPOT = Place("world", "r", "a", "A100:8", spot=True, price_usd_per_hour=11.0)
ON_DEMAND = Place("world", "r", "b", "A100:8", spot=False, price_usd_per_hour=16.0)
FINE_H = 1 / 60


@dataclass
class Told:
    """What came of a run."""

    cost: float
    finish_h: float
    preemptions: int
    starts: int


class World:
    """A run of `work_h` hours. Everything is asked of `decide`."""

    def __init__(
        self, *, work_h: float, start_h: float, chain: Chain, deadline_h: float | None, interval_h: float,
        settings: Settings, seed: int, spot_only: bool = False, restore_usd: float = 0.0,
        ends_elsewhere: Rates | None = None,
    ) -> None:  # fmt: skip
        self.work_h, self.start_h, self.chain, self.interval_h = work_h, start_h, chain, interval_h
        self.deadline_h, self.settings, self.random = deadline_h, settings, random.Random(seed)
        behind = replace(ON_DEMAND, restore_usd=restore_usd)
        self.places = (SPOT,) if spot_only else (SPOT, behind)
        self.now = 0.0
        self.place: Place | None = None
        self.since = self.boot_h = self.fresh_h = 0.0
        self.refused_at: float | None = None
        self.refusals = self.in_vain = 0
        self.told = Told(0.0, 0.0, 0, 0)
        self.ends_elsewhere = ends_elsewhere or chain.machine_ends
        self.up, self.spell_age, self.elsewhere = True, 0.0, False
        self.left_on_demand, self.first_refusal = False, 0.0
        for _ in range(round(400 / FINE_H)):  # to its equilibrium
            self._market(FINE_H)

    def _market(self, hours: float) -> bool:
        """The market goes on; True when a zone's machines are taken away. Another zone may have some."""
        machine_ends = self.ends_elsewhere if self.elsewhere else self.chain.machine_ends
        rates = machine_ends if self.up else self.chain.down_ends
        ended = self.random.random() < rates[age_bin(self.spell_age)] * hours
        self.spell_age += hours
        taken = ended and self.up
        if ended:
            self.up, self.spell_age, self.elsewhere = not self.up, 0.0, False
        if taken and self.random.random() < self.chain.elsewhere:
            self.up, self.spell_age, self.elsewhere = True, UNSEEN_AGE_H, True
        return taken

    def run(self) -> Told:
        """To the end of the work."""
        wait_h = 0.0
        look_h = 0.0
        while self.work_h > 1e-9:
            if self.place is None and wait_h <= 0:
                wait_h = self._without_machine()
                look_h = self.settings.check_h
                continue
            if self.place is not None and look_h <= 0:
                look_h = self.settings.check_h
                if isinstance(decide(self._seen(), self.settings), Move):
                    self._end(moved=not self.place.spot)
                    wait_h = 0.0
                    continue
            hours = FINE_H
            wait_h, look_h = wait_h - hours, look_h - hours
            self._work(hours)
            if self._market(hours) and self.place is SPOT and self.work_h > 1e-9:
                lost = min(self.fresh_h, self.random.random() * self.interval_h)
                self.work_h += lost
                self.told.preemptions += 1
                self._end(moved=False)
                wait_h = 0.0
        self.told.finish_h = self.now
        return self.told

    def _work(self, hours: float) -> None:
        if self.place is not None:
            useful = min(max(0.0, hours - self.boot_h), self.work_h)
            hours = min(hours, self.boot_h + useful)
            self.boot_h = max(0.0, self.boot_h - hours)
            self.work_h -= useful
            self.fresh_h += useful
            self.told.cost += hours * self.place.price_usd_per_hour
        self.now += hours

    def _without_machine(self) -> float:
        action = decide(self._seen(), self.settings)
        if isinstance(action, Wait):
            return action.hours
        assert isinstance(action, Launch), action
        for place in action.places:
            if place.spot and not self.up:
                continue
            self.place, self.since, self.boot_h, self.fresh_h = place, self.now, self.start_h, 0.0
            self.told.starts += 1
            self.refused_at, self.refusals = None, 0
            if place.spot:
                self.in_vain = 0
            elif self.left_on_demand:
                self.in_vain += 1
            return 0.0
        self.refused_at, self.refusals = self.now, self.refusals + 1
        self.first_refusal = self.now if self.refusals == 1 else self.first_refusal
        return 0.0

    def _end(self, *, moved: bool) -> None:
        self.place, self.left_on_demand = None, moved
        self.refused_at, self.refusals = None, 0

    def _seen(self) -> Observation:
        refused = None if self.refused_at is None else self.now - self.refused_at
        known = tuple(PlaceState(place, refused_h_ago=refused if place.spot else None) for place in self.places)
        market = None
        if self.place is None and self.deadline_h is not None and len(self.places) > 1:
            down = self.refusals > 0
            age = self.now - self.first_refusal if down else UNSEEN_AGE_H
            market = SpotMarket(self.chain, up=not down, age_h=age)
        return Observation(
            places=known,
            work_left_h=self.work_h,
            restart_h=self.start_h,
            running=None if self.place is None else Running(self.place, self.now - self.since),
            deadline_h=None if self.deadline_h is None else self.deadline_h - self.now,
            refusals_in_a_row=self.refusals,
            hazard_per_h=1 / mean_spell_h(self.chain.machine_ends),
            failed_moves=self.in_vain,
            market=market,
        )
