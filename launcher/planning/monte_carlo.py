"""Thousands of runs of one plan at once, event by event: what the policy would do in a market of spells. Pure.

The runs follow `policy.decide` as a real run does, which sees no spot market that it does not ask: a test drives the
same world with `decide` itself, one run at a time, and compares.

Every run goes from event to event (a spell's end, a start's end, a threshold of the policy's table, the end of the
work), all of them in step, so that an array operation does one event of each.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.planning.scenario import NEVER_H, Floats, Scenario, SpellLengths, Spot
from launcher.policy.back_off import LONGEST_WAIT_H
from launcher.policy.safety import kept_h
from launcher.policy.settings import ROUNDING_H
from launcher.policy.spot.market import AGE_EDGES_H, BINS, UNSEEN_AGE_H, age_bin, mean_spell_h

Array = NDArray[Any]
IDLE, SPOT, ON_DEMAND, DONE = range(4)
TINY_H = 1e-6
"""What is due is over by so much, so that rounding can't make it due for ever."""
HOPELESS_H = 24 * 90.0
"""A run that isn't done after so long never will be."""


@dataclass(frozen=True)
class Runs:
    """What came of each run; arrays of the same length. A run that never ends has an infinite `finish_h`."""

    cost: Floats
    finish_h: Floats
    preemptions: Floats
    starts: Floats
    on_demand_starts: Floats
    first_on_demand: Floats
    """1 where the first start was one."""
    lost_h: Floats
    waited_h: Floats
    spot_h: Floats
    on_demand_h: Floats


def simulate(scenario: Scenario, count: int = 2000, seed: int = 0) -> Runs:
    """`count` runs of a plan. The same seed gives the same runs."""
    if scenario.spot is None:
        return _certain(scenario, count)
    return _Simulation(scenario, scenario.spot, count, np.random.default_rng(seed)).run()


def _certain(scenario: Scenario, count: int) -> Runs:
    """On demand only: nothing happens."""
    assert scenario.on_demand is not None
    hours = np.full(count, scenario.start_h + scenario.work_h / scenario.on_demand.speed * (1 + scenario.slowdown))
    none = np.zeros(count)
    return Runs(hours * scenario.on_demand.price, hours, none, none + 1, none + 1, none + 1, none, none, none, hours)


@dataclass
class _RunArrays:
    """The state of every simulated run: one entry of each array per run. Hours count from the launch."""

    now_h: Floats
    work_h: Floats
    """Left to do."""
    mode: Array
    """IDLE, SPOT, ON_DEMAND or DONE."""
    boot_h: Floats
    """Until the machine does its first step; 0 = it works."""
    usd_per_h: Floats
    """Of the machine."""
    fresh_h: Floats
    """Work that this machine has done."""
    refused_at_h: Floats
    """When spot had nothing for the first time since the last machine; NaN = it has not been asked."""
    ask_at_h: Floats
    """When spot is asked next."""
    on_demand_since_h: Floats
    futile_returns: Floats
    """Tries in a row to go back to spot that found none: they double the pause before the next."""
    cost_usd: Floats
    preemptions: Floats
    lost_h: Floats
    """Work that had to be done again."""
    starts: Floats
    on_demand_starts: Floats
    first_on_demand: Floats
    """1 where the first machine was one on demand."""
    waited_h: Floats
    spot_h: Floats
    on_demand_h: Floats
    up: Array
    """Does spot have machines?"""
    elsewhere: Array
    """Are they in another zone than the one that came first?"""
    flip_at_h: Floats
    """When that changes."""

    @classmethod
    def of(cls, count: int, work_h: float) -> _RunArrays:
        """That many runs before their first machine, in a market that is down."""
        arrays: dict[str, Any] = {field.name: np.zeros(count) for field in fields(cls)}
        arrays["work_h"] += work_h
        arrays["refused_at_h"] += np.nan
        arrays["mode"] = np.full(count, IDLE)
        arrays["up"], arrays["elsewhere"] = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        return cls(**arrays)


class _Simulation:
    def __init__(self, scenario: Scenario, spot: Spot, count: int, random: np.random.Generator) -> None:
        self.s, self.spot, self.random = scenario, spot, random
        self.kept_h = kept_h(scenario.start_h, scenario.settings)
        self.up_spells, self.down_spells = SpellLengths(spot.chain.machine_ends), SpellLengths(spot.chain.down_ends)
        self.other_spells = SpellLengths(spot.ends_elsewhere) if spot.ends_elsewhere else self.up_spells
        self.runs = _RunArrays.of(count, scenario.work_h)
        self._open_market(count)

    def _open_market(self, count: int) -> None:
        """As it is met at a random moment: down, up in the zone that came first, or in one that followed it."""
        chain = self.spot.chain
        first, down = mean_spell_h(chain.machine_ends), mean_spell_h(chain.down_ends)
        following = chain.elsewhere / (1 - chain.elsewhere) * self.other_spells.mean_rest_h(UNSEEN_AGE_H)
        self.runs.up = self.random.random(count) < (first + following) / (first + following + down)
        self.runs.elsewhere = self.runs.up & (self.random.random(count) < following / (first + following))
        chance, rest = self.random.random(count), 1 - self.random.random(count)
        fresh, followed = self.up_spells.met_at_random(chance), self.other_spells.met_at_random(chance, UNSEEN_AGE_H)
        up_age, down_age = np.where(self.runs.elsewhere, followed, fresh), self.down_spells.met_at_random(chance)
        self.runs.flip_at_h = np.where(
            self.runs.up, self._life(self.runs.elsewhere, up_age, rest), self.down_spells.rest(down_age, rest)
        )

    def _life(self, elsewhere: Array, age_h: Floats, chance: Floats) -> Floats:
        """What is left of the life of machines of that age, in the first zone or in another."""
        return np.where(elsewhere, self.other_spells.rest(age_h, chance), self.up_spells.rest(age_h, chance))

    def run(self) -> Runs:
        self._place(np.arange(len(self.runs.now_h)))
        while len(alive := np.flatnonzero((self.runs.mode != DONE) & (self.runs.now_h < HOPELESS_H))):
            self._step(alive)
        never = self.runs.mode != DONE
        finish = np.where(never, np.inf, self.runs.now_h)
        cost = np.where(never, np.inf, self.runs.cost_usd)
        starts = (self.runs.starts, self.runs.on_demand_starts, self.runs.first_on_demand)
        return Runs(
            cost,
            finish,
            self.runs.preemptions,
            *starts,
            self.runs.lost_h,
            self.runs.waited_h,
            self.runs.spot_h,
            self.runs.on_demand_h,
        )

    # --- one event of each run ----------------------------------------------------------------------

    def _step(self, who: Array) -> None:
        mode, boot = self.runs.mode[who], self.runs.boot_h[who]
        rate = self._rate(mode)
        to_flip = self.runs.flip_at_h[who] - self.runs.now_h[who]
        to_start = np.where(boot > 0, boot, NEVER_H)
        to_end = np.where((mode != IDLE) & (boot <= 0), self.runs.work_h[who] / rate, NEVER_H)
        to_choice = self._to_choice(who, mode, boot)
        hours = np.maximum(np.minimum(np.minimum(to_flip, to_start), np.minimum(to_end, to_choice)), 0.0)
        self._pass(who, mode, boot, rate, hours)
        ended = to_end <= hours
        self.runs.mode[who[ended]] = DONE
        flipped, chose = ~ended & (to_flip <= hours), ~ended & (to_choice <= hours) & (to_flip > hours)
        self._flip(who[flipped])
        self._choose(who[chose])

    def _rate(self, mode: Array) -> Floats:
        """Hours of the plan's work in an hour."""
        speed = self.s.on_demand.speed if self.s.on_demand else 1.0
        return np.where(mode == ON_DEMAND, speed, 1.0) / (1 + self.s.slowdown)

    def _pass(self, who: Array, mode: Array, boot: Floats, rate: Floats, hours: Floats) -> None:
        self.runs.now_h[who] += hours
        working = (mode != IDLE) & (boot <= 0)
        done = np.where(working, hours * rate, 0.0)
        self.runs.work_h[who] = np.maximum(0.0, self.runs.work_h[who] - done)
        self.runs.fresh_h[who] += done
        self.runs.boot_h[who] = np.maximum(0.0, boot - hours)
        self.runs.cost_usd[who] += np.where(mode != IDLE, hours * self.runs.usd_per_h[who], 0.0)
        for total, kind in ((self.runs.waited_h, IDLE), (self.runs.spot_h, SPOT), (self.runs.on_demand_h, ON_DEMAND)):
            total[who] += np.where(mode == kind, hours, 0.0)

    def _flip(self, who: Array) -> None:
        """A spell ends, and another zone may be up. A machine goes with it, and the run asks elsewhere at once."""
        if not len(who):
            return
        up, mode = self.runs.up[who], self.runs.mode[who]
        elsewhere = up & (self.random.random(len(who)) < self.spot.chain.elsewhere)
        self.runs.up[who], self.runs.elsewhere[who] = ~up | elsewhere, elsewhere
        chance = 1 - self.random.random(len(who))
        age = np.where(elsewhere, UNSEEN_AGE_H, 0.0)
        rest = np.where(self.runs.up[who], self._life(elsewhere, age, chance), self.down_spells.rest(age, chance))
        self.runs.flip_at_h[who] = self.runs.now_h[who] + rest
        back = who[~up & (mode == IDLE)]
        self.runs.ask_at_h[back] = self.runs.now_h[back] + LONGEST_WAIT_H * self.random.random(len(back))
        self._lose(who[up & (mode == SPOT)])

    def _lose(self, who: Array) -> None:
        if not len(who):
            return
        since = self.s.interval_h * self.random.random(len(who)) + self.s.upload_h
        lost = np.minimum(self.runs.fresh_h[who], since)
        self.runs.work_h[who] += lost
        self.runs.lost_h[who] += lost
        self.runs.preemptions[who] += 1
        self._free(who)
        self._place(who)

    def _free(self, who: Array) -> None:
        self.runs.mode[who], self.runs.boot_h[who], self.runs.fresh_h[who] = IDLE, 0.0, 0.0
        self.runs.refused_at_h[who], self.runs.ask_at_h[who] = np.nan, self.runs.now_h[who]

    # --- what the policy says -----------------------------------------------------------------------

    def _to_choice(self, who: Array, mode: Array, boot: Floats) -> Floats:
        """Until the policy may decide otherwise, with nothing else happening."""
        hours = np.full(len(who), NEVER_H)
        waits = np.flatnonzero(mode == IDLE)
        if len(waits):
            hours[waits] = self._until_asked(who[waits])
        if self.s.on_demand is not None:
            back = np.flatnonzero(mode == ON_DEMAND)
            if len(back):
                hours[back] = self._until_back(who[back])
            if self._by_outlook:
                spot = np.flatnonzero(mode == SPOT)
                hours[spot] = self._until_unsafe(who[spot])
        return hours

    def _until_asked(self, who: Array) -> Floats:
        """A spot market that is back is asked within the back-off; the table may want on demand before that."""
        asks = (
            np.where(self.runs.up[who], np.maximum(self.runs.ask_at_h[who], self.runs.now_h[who]), NEVER_H)
            - self.runs.now_h[who]
        )
        if not self._by_outlook:
            return np.asarray(asks)
        age = self.runs.now_h[who] - self.runs.refused_at_h[who]
        edges = np.array((*AGE_EDGES_H, NEVER_H))
        to_edge = edges[np.searchsorted(edges, age, side="right").clip(max=BINS - 1)] - age
        to_buy = self._slack(who) - np.maximum(self._buy_at(who, age), self.s.start_h + self.kept_h)
        return np.asarray(np.minimum(asks, np.maximum(np.minimum(to_edge, to_buy), 0.0) + TINY_H))

    def _until_back(self, who: Array) -> Floats:
        """The next try to leave on demand for spot (`policy.decide._back_to_spot`)."""
        s, on_demand = self.s, self.s.on_demand
        assert on_demand is not None
        due = self.runs.on_demand_since_h[who] + s.settings.return_h * 2 ** self.runs.futile_returns[who]
        # Of what is left then, so that it pays; the work shrinks until the timer runs out.
        ahead = np.maximum(due - self.runs.now_h[who], 0.0)
        left = self.runs.work_h[who] - np.maximum(0.0, ahead - self.runs.boot_h[who]) * self._rate(np.array(ON_DEMAND))
        trying = s.start_h * on_demand.price + on_demand.restore_usd
        trying += 2 * (s.start_h * self.spot.price + self.spot.restore_usd)
        pays = left * (on_demand.price - self.spot.price) > trying
        if s.deadline_h is not None:
            deadline = s.deadline_h - self.runs.now_h[who] - ahead
            tight = (left - TINY_H <= deadline) & (deadline < left + 3 * s.start_h + s.settings.check_h)
            pays &= ~tight
        return np.where(pays, ahead, NEVER_H)

    def _until_unsafe(self, who: Array) -> Floats:
        """Hours until too little slack is left and the policy gives spot back (`policy.safety.must_be_safe`).

        A start takes slack, and so do saves.
        """
        slack, boot = self._slack(who), self.runs.boot_h[who]
        left = slack - boot - self.kept_h
        slowly = self.s.slowdown / (1 + self.s.slowdown)
        hours = boot + left / slowly if slowly else np.full(len(who), NEVER_H)
        return np.asarray(np.where(left < 0, np.where(self._makes_it(slack), 0.0, NEVER_H), hours))

    def _choose(self, who: Array) -> None:
        """Something that the policy waited for has come."""
        if not len(who):
            return
        mode = self.runs.mode[who]
        unsafe, back = who[mode == SPOT], who[mode == ON_DEMAND]
        self._free(unsafe)
        self._place(who[mode != ON_DEMAND])
        if len(back):
            was = self.runs.futile_returns[back]
            self._free(back)
            self._place(back)
            futile = self.runs.mode[back] == ON_DEMAND
            self.runs.futile_returns[back] = np.where(futile, was + 1, np.where(self.runs.mode[back] == SPOT, 0, was))

    def _place(self, who: Array) -> None:
        """Without a machine (`policy.decide._without_machine`): on demand, spot, or wait."""
        if not len(who):
            return
        if self._by_outlook:
            slack = self._slack(who)
            enough = np.maximum(self._threshold_now(who), self.s.start_h + self.kept_h)
            buys = self._makes_it(slack) & (slack <= enough + TINY_H)
            self._buy(who[buys])
            who = who[~buys]
        there = self.runs.up[who]
        price = np.where(self.runs.elsewhere[who], self.spot.price_elsewhere, self.spot.price)
        self._start(who[there], SPOT, price[there])
        self._without_spot(who[~there])

    def _without_spot(self, who: Array) -> None:
        """Spot was asked and had nothing."""
        if not len(who):
            return
        first = np.isnan(self.runs.refused_at_h[who])
        self._refuse(who)
        if self.s.on_demand is None:
            return
        if not self._by_outlook:
            self._buy(who)
            return
        late = ~self._makes_it(self._slack(who))
        buys = late | (first & (self._slack(who) <= self._buy_at(who, np.zeros(len(who)))))
        self._buy(who[buys])

    def _refuse(self, who: Array) -> None:
        unset = who[np.isnan(self.runs.refused_at_h[who])]
        self.runs.refused_at_h[unset] = self.runs.now_h[unset]
        self.runs.mode[who] = IDLE
        self.runs.ask_at_h[who] = np.where(
            self.runs.up[who], self.runs.now_h[who] + LONGEST_WAIT_H, self.runs.now_h[who]
        )

    def _buy(self, who: Array) -> None:
        assert self.s.on_demand is not None or not len(who)
        if len(who) and self.s.on_demand is not None:
            self._start(who, ON_DEMAND, self.s.on_demand.price)
            self.runs.on_demand_since_h[who] = self.runs.now_h[who]

    def _start(self, who: Array, mode: int, price: float | Floats) -> None:
        if not len(who):
            return
        self.runs.mode[who], self.runs.boot_h[who], self.runs.fresh_h[who] = mode, self.s.start_h, 0.0
        self.runs.usd_per_h[who] = price
        self.runs.starts[who] += 1
        if mode == SPOT:
            self.runs.futile_returns[who] = 0
        else:
            self.runs.first_on_demand[who] = np.where(self.runs.starts[who] == 1, 1.0, self.runs.first_on_demand[who])
            self.runs.on_demand_starts[who] += 1

    # --- slack and thresholds -----------------------------------------------------------------------

    @property
    def _by_outlook(self) -> bool:
        return self.s.table is not None

    def _makes_it(self, slack: Floats) -> Array:
        """Can on demand still meet the deadline? Else nothing binds the policy."""
        return np.asarray(slack >= self.s.start_h - ROUNDING_H)

    def _slack(self, who: Array) -> Floats:
        assert self.s.deadline_h is not None
        return np.asarray(self.s.deadline_h - self.runs.now_h[who] - self.runs.work_h[who])

    def _threshold_now(self, who: Array) -> Floats:
        """To buy at or below: a market that nobody has asked yet counts as up, one that refused as down."""
        refused = ~np.isnan(self.runs.refused_at_h[who])
        age = np.where(refused, self.runs.now_h[who] - self.runs.refused_at_h[who], UNSEEN_AGE_H)
        return np.where(refused, self._buy_at(who, age), self._lookup(who, np.full(len(who), age_bin(UNSEEN_AGE_H))))

    def _buy_at(self, who: Array, age_h: Floats) -> Floats:
        """The threshold of a market that has been down for that long."""
        return self._lookup(who, BINS + np.searchsorted(np.array(AGE_EDGES_H), age_h + 1e-9, side="right"))

    def _lookup(self, who: Array, column: Array) -> Floats:
        """`Outlook.at` of the buying threshold, for arrays."""
        table = self.s.table
        assert table is not None
        where = np.minimum(self.runs.work_h[who] / table.grid_h, len(table.buy) - 1.0)
        low = np.minimum(where.astype(int), len(table.buy) - 2)
        below, above = table.buy[low, column], table.buy[low + 1, column]
        return np.asarray(below + (where - low) * (above - below))
