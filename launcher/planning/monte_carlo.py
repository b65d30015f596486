"""Simulate thousands of runs of one plan, event by event, under the policy in a market of spells. Pure.

The runs follow `policy.decide` as a real run does, which learns about a spot market only by requesting machines. A test
drives the same world with `decide` itself, one run at a time, and compares.

Every run advances from event to event (the end of a spell or a start, a threshold of the policy's table, the end of the
work). All runs advance together, so that an array operation handles one event of each.
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
"""Events are passed by this much, so that rounding can't keep one due forever."""
HOPELESS_H = 24 * 90.0
"""A run that isn't done after this long never will be."""


@dataclass(frozen=True)
class Runs:
    """The outcome of each run; arrays of the same length. A run that never ends has an infinite `finish_h`."""

    cost: Floats
    finish_h: Floats
    preemptions: Floats
    starts: Floats
    on_demand_starts: Floats
    first_on_demand: Floats
    """1 if the first start was on demand."""
    lost_h: Floats
    waited_h: Floats
    spot_h: Floats
    on_demand_h: Floats


def simulate(scenario: Scenario, count: int = 2000, seed: int = 0) -> Runs:
    """Simulate `count` runs of a plan. The same seed gives the same runs."""
    if scenario.spot is None:
        return _certain(scenario, count)
    return _Simulation(scenario, scenario.spot, count, np.random.default_rng(seed)).run()


def _certain(scenario: Scenario, count: int) -> Runs:
    """Runs that are only on demand, without events."""
    assert scenario.on_demand is not None
    hours = np.full(count, scenario.start_h + scenario.work_h / scenario.on_demand.speed * (1 + scenario.slowdown))
    none = np.zeros(count)
    return Runs(hours * scenario.on_demand.price, hours, none, none + 1, none + 1, none + 1, none, none, none, hours)


@dataclass
class _RunArrays:
    """The state of every simulated run, one array entry per run. Hours count from the launch."""

    now_h: Floats
    work_h: Floats
    """Work left."""
    mode: Array
    """IDLE, SPOT, ON_DEMAND or DONE."""
    boot_h: Floats
    """Hours until the machine's first step; 0 = it works."""
    usd_per_h: Floats
    """Price of the machine."""
    fresh_h: Floats
    """Work done on this machine."""
    refused_at_h: Floats
    """First refusal by spot since the last machine; NaN = not tried yet."""
    retry_at_h: Floats
    """When spot is tried next."""
    on_demand_since_h: Floats
    failed_returns: Floats
    """Unsuccessful tries in a row to return to spot. Each doubles the pause before the next."""
    cost_usd: Floats
    preemptions: Floats
    lost_h: Floats
    """Work that had to be repeated."""
    starts: Floats
    on_demand_starts: Floats
    first_on_demand: Floats
    """1 if the first machine was on demand."""
    waited_h: Floats
    spot_h: Floats
    on_demand_h: Floats
    up: Array
    """Is spot available?"""
    elsewhere: Array
    """Is it available in another zone than the first one?"""
    flip_at_h: Floats
    """When `up` changes next."""

    @classmethod
    def of(cls, count: int, work_h: float) -> _RunArrays:
        """`count` runs before their first machine, in a market that is down."""
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
        """Draw the market's state at a random moment: down, up in the first zone, or up in one that followed it."""
        chain = self.spot.chain
        first, down = mean_spell_h(chain.machine_ends), mean_spell_h(chain.down_ends)
        following = chain.elsewhere / (1 - chain.elsewhere) * self.other_spells.mean_rest_h(UNSEEN_AGE_H)
        self.runs.up = self.random.random(count) < (first + following) / (first + following + down)
        self.runs.elsewhere = self.runs.up & (self.random.random(count) < following / (first + following))
        chance, rest = self.random.random(count), 1 - self.random.random(count)
        fresh, followed = (
            self.up_spells.age_at_random_time(chance),
            self.other_spells.age_at_random_time(chance, UNSEEN_AGE_H),
        )
        up_age, down_age = np.where(self.runs.elsewhere, followed, fresh), self.down_spells.age_at_random_time(chance)
        self.runs.flip_at_h = np.where(
            self.runs.up, self._life(self.runs.elsewhere, up_age, rest), self.down_spells.rest(down_age, rest)
        )

    def _life(self, elsewhere: Array, age_h: Floats, chance: Floats) -> Floats:
        """Remaining life of machines of that age, in the first zone or in another."""
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

    def _step(self, ids: Array) -> None:
        mode, boot = self.runs.mode[ids], self.runs.boot_h[ids]
        rate = self._rate(mode)
        to_flip = self.runs.flip_at_h[ids] - self.runs.now_h[ids]
        to_start = np.where(boot > 0, boot, NEVER_H)
        to_end = np.where((mode != IDLE) & (boot <= 0), self.runs.work_h[ids] / rate, NEVER_H)
        to_choice = self._to_choice(ids, mode, boot)
        hours = np.maximum(np.minimum(np.minimum(to_flip, to_start), np.minimum(to_end, to_choice)), 0.0)
        self._pass(ids, mode, boot, rate, hours)
        ended = to_end <= hours
        self.runs.mode[ids[ended]] = DONE
        flipped, chose = ~ended & (to_flip <= hours), ~ended & (to_choice <= hours) & (to_flip > hours)
        self._flip(ids[flipped])
        self._choose(ids[chose])

    def _rate(self, mode: Array) -> Floats:
        """Hours of the plan's work done per hour."""
        speed = self.s.on_demand.speed if self.s.on_demand else 1.0
        return np.where(mode == ON_DEMAND, speed, 1.0) / (1 + self.s.slowdown)

    def _pass(self, ids: Array, mode: Array, boot: Floats, rate: Floats, hours: Floats) -> None:
        self.runs.now_h[ids] += hours
        working = (mode != IDLE) & (boot <= 0)
        done = np.where(working, hours * rate, 0.0)
        self.runs.work_h[ids] = np.maximum(0.0, self.runs.work_h[ids] - done)
        self.runs.fresh_h[ids] += done
        self.runs.boot_h[ids] = np.maximum(0.0, boot - hours)
        self.runs.cost_usd[ids] += np.where(mode != IDLE, hours * self.runs.usd_per_h[ids], 0.0)
        for total, kind in ((self.runs.waited_h, IDLE), (self.runs.spot_h, SPOT), (self.runs.on_demand_h, ON_DEMAND)):
            total[ids] += np.where(mode == kind, hours, 0.0)

    def _flip(self, ids: Array) -> None:
        """End a spell. Its machine is lost, and the run tries other zones at once, one of which may be up."""
        if not len(ids):
            return
        up, mode = self.runs.up[ids], self.runs.mode[ids]
        elsewhere = up & (self.random.random(len(ids)) < self.spot.chain.elsewhere)
        self.runs.up[ids], self.runs.elsewhere[ids] = ~up | elsewhere, elsewhere
        chance = 1 - self.random.random(len(ids))
        age = np.where(elsewhere, UNSEEN_AGE_H, 0.0)
        rest = np.where(self.runs.up[ids], self._life(elsewhere, age, chance), self.down_spells.rest(age, chance))
        self.runs.flip_at_h[ids] = self.runs.now_h[ids] + rest
        back = ids[~up & (mode == IDLE)]
        self.runs.retry_at_h[back] = self.runs.now_h[back] + LONGEST_WAIT_H * self.random.random(len(back))
        self._lose(ids[up & (mode == SPOT)])

    def _lose(self, ids: Array) -> None:
        if not len(ids):
            return
        since = self.s.interval_h * self.random.random(len(ids)) + self.s.upload_h
        lost = np.minimum(self.runs.fresh_h[ids], since)
        self.runs.work_h[ids] += lost
        self.runs.lost_h[ids] += lost
        self.runs.preemptions[ids] += 1
        self._free(ids)
        self._place(ids)

    def _free(self, ids: Array) -> None:
        self.runs.mode[ids], self.runs.boot_h[ids], self.runs.fresh_h[ids] = IDLE, 0.0, 0.0
        self.runs.refused_at_h[ids], self.runs.retry_at_h[ids] = np.nan, self.runs.now_h[ids]

    # --- the policy's decisions ---------------------------------------------------------------------

    def _to_choice(self, ids: Array, mode: Array, boot: Floats) -> Floats:
        """Hours until the policy may decide differently without any other event."""
        hours = np.full(len(ids), NEVER_H)
        waits = np.flatnonzero(mode == IDLE)
        if len(waits):
            hours[waits] = self._until_retry(ids[waits])
        if self.s.on_demand is not None:
            back = np.flatnonzero(mode == ON_DEMAND)
            if len(back):
                hours[back] = self._until_back(ids[back])
            if self._has_table:
                spot = np.flatnonzero(mode == SPOT)
                hours[spot] = self._until_unsafe(ids[spot])
        return hours

    def _until_retry(self, ids: Array) -> Floats:
        """Hours until spot is tried again, within the back-off, or until the table prefers on demand."""
        asks = (
            np.where(self.runs.up[ids], np.maximum(self.runs.retry_at_h[ids], self.runs.now_h[ids]), NEVER_H)
            - self.runs.now_h[ids]
        )
        if not self._has_table:
            return np.asarray(asks)
        age = self.runs.now_h[ids] - self.runs.refused_at_h[ids]
        edges = np.array((*AGE_EDGES_H, NEVER_H))
        to_edge = edges[np.searchsorted(edges, age, side="right").clip(max=BINS - 1)] - age
        to_buy = self._slack(ids) - np.maximum(self._buy_at(ids, age), self.s.start_h + self.kept_h)
        return np.asarray(np.minimum(asks, np.maximum(np.minimum(to_edge, to_buy), 0.0) + TINY_H))

    def _until_back(self, ids: Array) -> Floats:
        """Hours until the next try to leave on demand for spot (`policy.moves._try_spot`)."""
        s, on_demand = self.s, self.s.on_demand
        assert on_demand is not None
        due = self.runs.on_demand_since_h[ids] + s.settings.return_h * 2 ** self.runs.failed_returns[ids]
        # It must pay off for the work left at that time, which shrinks until the timer runs out.
        ahead = np.maximum(due - self.runs.now_h[ids], 0.0)
        left = self.runs.work_h[ids] - np.maximum(0.0, ahead - self.runs.boot_h[ids]) * self._rate(np.array(ON_DEMAND))
        trying = s.start_h * on_demand.price + on_demand.restore_usd
        trying += 2 * (s.start_h * self.spot.price + self.spot.restore_usd)
        pays = left * (on_demand.price - self.spot.price) > trying
        if s.deadline_h is not None:
            deadline = s.deadline_h - self.runs.now_h[ids] - ahead
            tight = (left - TINY_H <= deadline) & (deadline < left + 3 * s.start_h + s.settings.check_h)
            pays &= ~tight
        return np.where(pays, ahead, NEVER_H)

    def _until_unsafe(self, ids: Array) -> Floats:
        """Hours until too little slack is left and the policy leaves spot (`policy.safety.must_be_safe`).

        A start uses up slack, and so do saves.
        """
        slack, boot = self._slack(ids), self.runs.boot_h[ids]
        left = slack - boot - self.kept_h
        slowly = self.s.slowdown / (1 + self.s.slowdown)
        hours = boot + left / slowly if slowly else np.full(len(ids), NEVER_H)
        return np.asarray(np.where(left < 0, np.where(self._in_time(slack), 0.0, NEVER_H), hours))

    def _choose(self, ids: Array) -> None:
        """Handle the decision that the policy was waiting for."""
        if not len(ids):
            return
        mode = self.runs.mode[ids]
        unsafe, back = ids[mode == SPOT], ids[mode == ON_DEMAND]
        self._free(unsafe)
        self._place(ids[mode != ON_DEMAND])
        if len(back):
            was = self.runs.failed_returns[back]
            self._free(back)
            self._place(back)
            futile = self.runs.mode[back] == ON_DEMAND
            self.runs.failed_returns[back] = np.where(futile, was + 1, np.where(self.runs.mode[back] == SPOT, 0, was))

    def _place(self, ids: Array) -> None:
        """Decide without a machine (`policy.decide._without_machine`): on demand, spot, or wait."""
        if not len(ids):
            return
        if self._has_table:
            slack = self._slack(ids)
            enough = np.maximum(self._threshold_now(ids), self.s.start_h + self.kept_h)
            buys = self._in_time(slack) & (slack <= enough + TINY_H)
            self._buy(ids[buys])
            ids = ids[~buys]
        there = self.runs.up[ids]
        price = np.where(self.runs.elsewhere[ids], self.spot.price_elsewhere, self.spot.price)
        self._start(ids[there], SPOT, price[there])
        self._without_spot(ids[~there])

    def _without_spot(self, ids: Array) -> None:
        """Spot was tried and had no machine."""
        if not len(ids):
            return
        first = np.isnan(self.runs.refused_at_h[ids])
        self._refuse(ids)
        if self.s.on_demand is None:
            return
        if not self._has_table:
            self._buy(ids)
            return
        late = ~self._in_time(self._slack(ids))
        buys = late | (first & (self._slack(ids) <= self._buy_at(ids, np.zeros(len(ids)))))
        self._buy(ids[buys])

    def _refuse(self, ids: Array) -> None:
        unset = ids[np.isnan(self.runs.refused_at_h[ids])]
        self.runs.refused_at_h[unset] = self.runs.now_h[unset]
        self.runs.mode[ids] = IDLE
        self.runs.retry_at_h[ids] = np.where(
            self.runs.up[ids], self.runs.now_h[ids] + LONGEST_WAIT_H, self.runs.now_h[ids]
        )

    def _buy(self, ids: Array) -> None:
        assert self.s.on_demand is not None or not len(ids)
        if len(ids) and self.s.on_demand is not None:
            self._start(ids, ON_DEMAND, self.s.on_demand.price)
            self.runs.on_demand_since_h[ids] = self.runs.now_h[ids]

    def _start(self, ids: Array, mode: int, price: float | Floats) -> None:
        if not len(ids):
            return
        self.runs.mode[ids], self.runs.boot_h[ids], self.runs.fresh_h[ids] = mode, self.s.start_h, 0.0
        self.runs.usd_per_h[ids] = price
        self.runs.starts[ids] += 1
        if mode == SPOT:
            self.runs.failed_returns[ids] = 0
        else:
            self.runs.first_on_demand[ids] = np.where(self.runs.starts[ids] == 1, 1.0, self.runs.first_on_demand[ids])
            self.runs.on_demand_starts[ids] += 1

    # --- slack and thresholds -----------------------------------------------------------------------

    @property
    def _has_table(self) -> bool:
        return self.s.table is not None

    def _in_time(self, slack: Floats) -> Array:
        """Can on demand still meet the deadline? If not, the policy ignores the deadline."""
        return np.asarray(slack >= self.s.start_h - ROUNDING_H)

    def _slack(self, ids: Array) -> Floats:
        assert self.s.deadline_h is not None
        return np.asarray(self.s.deadline_h - self.runs.now_h[ids] - self.runs.work_h[ids])

    def _threshold_now(self, ids: Array) -> Floats:
        """The threshold to buy at or below. A market not yet tried counts as up, one that refused as down."""
        refused = ~np.isnan(self.runs.refused_at_h[ids])
        age = np.where(refused, self.runs.now_h[ids] - self.runs.refused_at_h[ids], UNSEEN_AGE_H)
        return np.where(refused, self._buy_at(ids, age), self._lookup(ids, np.full(len(ids), age_bin(UNSEEN_AGE_H))))

    def _buy_at(self, ids: Array, age_h: Floats) -> Floats:
        """The threshold of a market that has been down for `age_h`."""
        return self._lookup(ids, BINS + np.searchsorted(np.array(AGE_EDGES_H), age_h + 1e-9, side="right"))

    def _lookup(self, ids: Array, column: Array) -> Floats:
        """`SlackTable.at` of the `buy` threshold, for arrays."""
        table = self.s.table
        assert table is not None
        where = np.minimum(self.runs.work_h[ids] / table.grid_h, len(table.buy) - 1.0)
        low = np.minimum(where.astype(int), len(table.buy) - 2)
        below, above = table.buy[low, column], table.buy[low + 1, column]
        return np.asarray(below + (where - low) * (above - below))
