"""Thousands of runs of one plan at once, event by event: what the policy would do in a market of spells. Pure.

The runs follow `policy.decide` as a real run does, which sees no spot market that it does not ask: a test drives the
same world with `decide` itself, one run at a time, and compares.

Every run goes from event to event (a spell's end, a start's end, a threshold of the policy's table, the end of the
work), all of them in step, so that an array operation does one event of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.planning.scenario import NEVER_H, Floats, Scenario, SpellLengths, Spot
from launcher.policy.safety import kept_h
from launcher.policy.settings import LONGEST_WAIT_H, ROUNDING_H
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


class _Simulation:
    def __init__(self, scenario: Scenario, spot: Spot, count: int, random: np.random.Generator) -> None:
        self.s, self.spot, self.random = scenario, spot, random
        self.kept_h = kept_h(scenario.start_h, scenario.settings)
        self.up_spells, self.down_spells = SpellLengths(spot.chain.machine_ends), SpellLengths(spot.chain.down_ends)
        self.other_spells = SpellLengths(spot.ends_elsewhere) if spot.ends_elsewhere else self.up_spells
        zeros = np.zeros(count)
        self.now, self.work = zeros.copy(), zeros + scenario.work_h
        self.mode, self.boot = np.full(count, IDLE), zeros.copy()
        self.price, self.fresh_h = zeros.copy(), zeros.copy()
        """$ per hour of the machine, and the work that it has done."""
        self.refused_at, self.ask_at = zeros + np.nan, zeros.copy()
        self.on_demand_since, self.in_vain = zeros.copy(), zeros.copy()
        self.cost, self.preemptions, self.lost = (zeros.copy() for _ in range(3))
        self.starts, self.on_demand_starts, self.first_on_demand = (zeros.copy() for _ in range(3))
        self.waited, self.spot_h, self.on_demand_h = (zeros.copy() for _ in range(3))
        self._open_market(count)

    def _open_market(self, count: int) -> None:
        """As it is met at a random moment: down, up in the zone that came first, or in one that followed it."""
        chain = self.spot.chain
        first, down = mean_spell_h(chain.machine_ends), mean_spell_h(chain.down_ends)
        following = chain.elsewhere / (1 - chain.elsewhere) * self.other_spells.mean_rest_h(UNSEEN_AGE_H)
        self.up = self.random.random(count) < (first + following) / (first + following + down)
        self.elsewhere = self.up & (self.random.random(count) < following / (first + following))
        chance, rest = self.random.random(count), 1 - self.random.random(count)
        fresh, followed = self.up_spells.met_at_random(chance), self.other_spells.met_at_random(chance, UNSEEN_AGE_H)
        up_age, down_age = np.where(self.elsewhere, followed, fresh), self.down_spells.met_at_random(chance)
        self.flip_at = np.where(
            self.up, self._life(self.elsewhere, up_age, rest), self.down_spells.rest(down_age, rest)
        )

    def _life(self, elsewhere: Array, age_h: Floats, chance: Floats) -> Floats:
        """What is left of the life of machines of that age, in the first zone or in another."""
        return np.where(elsewhere, self.other_spells.rest(age_h, chance), self.up_spells.rest(age_h, chance))

    def run(self) -> Runs:
        self._place(np.arange(len(self.now)))
        while len(alive := np.flatnonzero((self.mode != DONE) & (self.now < HOPELESS_H))):
            self._step(alive)
        never = self.mode != DONE
        finish = np.where(never, np.inf, self.now)
        cost = np.where(never, np.inf, self.cost)
        starts = (self.starts, self.on_demand_starts, self.first_on_demand)
        return Runs(cost, finish, self.preemptions, *starts, self.lost, self.waited, self.spot_h, self.on_demand_h)

    # --- one event of each run ----------------------------------------------------------------------

    def _step(self, who: Array) -> None:
        mode, boot = self.mode[who], self.boot[who]
        rate = self._rate(mode)
        to_flip = self.flip_at[who] - self.now[who]
        to_start = np.where(boot > 0, boot, NEVER_H)
        to_end = np.where((mode != IDLE) & (boot <= 0), self.work[who] / rate, NEVER_H)
        to_choice = self._to_choice(who, mode, boot)
        hours = np.maximum(np.minimum(np.minimum(to_flip, to_start), np.minimum(to_end, to_choice)), 0.0)
        self._pass(who, mode, boot, rate, hours)
        ended = to_end <= hours
        self.mode[who[ended]] = DONE
        flipped, chose = ~ended & (to_flip <= hours), ~ended & (to_choice <= hours) & (to_flip > hours)
        self._flip(who[flipped])
        self._choose(who[chose])

    def _rate(self, mode: Array) -> Floats:
        """Hours of the plan's work in an hour."""
        speed = self.s.on_demand.speed if self.s.on_demand else 1.0
        return np.where(mode == ON_DEMAND, speed, 1.0) / (1 + self.s.slowdown)

    def _pass(self, who: Array, mode: Array, boot: Floats, rate: Floats, hours: Floats) -> None:
        self.now[who] += hours
        working = (mode != IDLE) & (boot <= 0)
        done = np.where(working, hours * rate, 0.0)
        self.work[who] = np.maximum(0.0, self.work[who] - done)
        self.fresh_h[who] += done
        self.boot[who] = np.maximum(0.0, boot - hours)
        self.cost[who] += np.where(mode != IDLE, hours * self.price[who], 0.0)
        for total, kind in ((self.waited, IDLE), (self.spot_h, SPOT), (self.on_demand_h, ON_DEMAND)):
            total[who] += np.where(mode == kind, hours, 0.0)

    def _flip(self, who: Array) -> None:
        """A spell ends, and another zone may be up. A machine goes with it, and the run asks elsewhere at once."""
        if not len(who):
            return
        up, mode = self.up[who], self.mode[who]
        elsewhere = up & (self.random.random(len(who)) < self.spot.chain.elsewhere)
        self.up[who], self.elsewhere[who] = ~up | elsewhere, elsewhere
        chance = 1 - self.random.random(len(who))
        age = np.where(elsewhere, UNSEEN_AGE_H, 0.0)
        rest = np.where(self.up[who], self._life(elsewhere, age, chance), self.down_spells.rest(age, chance))
        self.flip_at[who] = self.now[who] + rest
        back = who[~up & (mode == IDLE)]
        self.ask_at[back] = self.now[back] + LONGEST_WAIT_H * self.random.random(len(back))
        self._lose(who[up & (mode == SPOT)])

    def _lose(self, who: Array) -> None:
        if not len(who):
            return
        since = self.s.interval_h * self.random.random(len(who)) + self.s.upload_h
        lost = np.minimum(self.fresh_h[who], since)
        self.work[who] += lost
        self.lost[who] += lost
        self.preemptions[who] += 1
        self._free(who)
        self._place(who)

    def _free(self, who: Array) -> None:
        self.mode[who], self.boot[who], self.fresh_h[who] = IDLE, 0.0, 0.0
        self.refused_at[who], self.ask_at[who] = np.nan, self.now[who]

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
        asks = np.where(self.up[who], np.maximum(self.ask_at[who], self.now[who]), NEVER_H) - self.now[who]
        if not self._by_outlook:
            return np.asarray(asks)
        age = self.now[who] - self.refused_at[who]
        edges = np.array((*AGE_EDGES_H, NEVER_H))
        to_edge = edges[np.searchsorted(edges, age, side="right").clip(max=BINS - 1)] - age
        to_buy = self._slack(who) - np.maximum(self._buy_at(who, age), self.s.start_h + self.kept_h)
        return np.asarray(np.minimum(asks, np.maximum(np.minimum(to_edge, to_buy), 0.0) + TINY_H))

    def _until_back(self, who: Array) -> Floats:
        """The next try to leave on demand for spot (`policy.decide._back_to_spot`)."""
        s, on_demand = self.s, self.s.on_demand
        assert on_demand is not None
        due = self.on_demand_since[who] + s.settings.return_h * 2 ** self.in_vain[who]
        # Of what is left then, so that it pays; the work shrinks until the timer runs out.
        ahead = np.maximum(due - self.now[who], 0.0)
        left = self.work[who] - np.maximum(0.0, ahead - self.boot[who]) * self._rate(np.array(ON_DEMAND))
        trying = s.start_h * on_demand.price + on_demand.restore_usd
        trying += 2 * (s.start_h * self.spot.price + self.spot.restore_usd)
        pays = left * (on_demand.price - self.spot.price) > trying
        if s.deadline_h is not None:
            deadline = s.deadline_h - self.now[who] - ahead
            tight = (left - TINY_H <= deadline) & (deadline < left + 3 * s.start_h + s.settings.check_h)
            pays &= ~tight
        return np.where(pays, ahead, NEVER_H)

    def _until_unsafe(self, who: Array) -> Floats:
        """A start takes slack, and so do saves: with too little of it left the policy gives spot back
        (`policy.decide._must_be_safe`)."""
        slack, boot = self._slack(who), self.boot[who]
        left = slack - boot - self.kept_h
        slowly = self.s.slowdown / (1 + self.s.slowdown)
        hours = boot + left / slowly if slowly else np.full(len(who), NEVER_H)
        return np.asarray(np.where(left < 0, np.where(self._makes_it(slack), 0.0, NEVER_H), hours))

    def _choose(self, who: Array) -> None:
        """Something that the policy waited for has come."""
        if not len(who):
            return
        mode = self.mode[who]
        unsafe, back = who[mode == SPOT], who[mode == ON_DEMAND]
        self._free(unsafe)
        self._place(who[mode != ON_DEMAND])
        if len(back):
            was = self.in_vain[back]
            self._free(back)
            self._place(back)
            in_vain = self.mode[back] == ON_DEMAND
            self.in_vain[back] = np.where(in_vain, was + 1, np.where(self.mode[back] == SPOT, 0, was))

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
        there = self.up[who]
        price = np.where(self.elsewhere[who], self.spot.price_elsewhere, self.spot.price)
        self._start(who[there], SPOT, price[there])
        self._without_spot(who[~there])

    def _without_spot(self, who: Array) -> None:
        """Spot was asked and had nothing."""
        if not len(who):
            return
        first = np.isnan(self.refused_at[who])
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
        unset = who[np.isnan(self.refused_at[who])]
        self.refused_at[unset] = self.now[unset]
        self.mode[who] = IDLE
        self.ask_at[who] = np.where(self.up[who], self.now[who] + LONGEST_WAIT_H, self.now[who])

    def _buy(self, who: Array) -> None:
        assert self.s.on_demand is not None or not len(who)
        if len(who) and self.s.on_demand is not None:
            self._start(who, ON_DEMAND, self.s.on_demand.price)
            self.on_demand_since[who] = self.now[who]

    def _start(self, who: Array, mode: int, price: float | Floats) -> None:
        if not len(who):
            return
        self.mode[who], self.boot[who], self.fresh_h[who] = mode, self.s.start_h, 0.0
        self.price[who] = price
        self.starts[who] += 1
        if mode == SPOT:
            self.in_vain[who] = 0
        else:
            self.first_on_demand[who] = np.where(self.starts[who] == 1, 1.0, self.first_on_demand[who])
            self.on_demand_starts[who] += 1

    # --- slack and thresholds -----------------------------------------------------------------------

    @property
    def _by_outlook(self) -> bool:
        return self.s.outlook is not None

    def _makes_it(self, slack: Floats) -> Array:
        """Can on demand still meet the deadline? Else nothing binds the policy."""
        return np.asarray(slack >= self.s.start_h - ROUNDING_H)

    def _slack(self, who: Array) -> Floats:
        assert self.s.deadline_h is not None
        return np.asarray(self.s.deadline_h - self.now[who] - self.work[who])

    def _threshold_now(self, who: Array) -> Floats:
        """To buy at or below: a market that nobody has asked yet counts as up, one that refused as down."""
        refused = ~np.isnan(self.refused_at[who])
        age = np.where(refused, self.now[who] - self.refused_at[who], UNSEEN_AGE_H)
        return np.where(refused, self._buy_at(who, age), self._lookup(who, np.full(len(who), age_bin(UNSEEN_AGE_H))))

    def _buy_at(self, who: Array, age_h: Floats) -> Floats:
        """The threshold of a market that has been down for that long."""
        return self._lookup(who, BINS + np.searchsorted(np.array(AGE_EDGES_H), age_h + 1e-9, side="right"))

    def _lookup(self, who: Array, column: Array) -> Floats:
        """`Outlook.at` of the buying threshold, for arrays."""
        outlook = self.s.outlook
        assert outlook is not None
        where = np.minimum(self.work[who] / outlook.grid_h, len(outlook.buy) - 1.0)
        low = np.minimum(where.astype(int), len(outlook.buy) - 2)
        below, above = outlook.buy[low, column], outlook.buy[low + 1, column]
        return np.asarray(below + (where - low) * (above - below))
