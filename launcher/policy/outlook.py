"""What the slack is worth: a dynamic program over time and work left that says when waiting for spot beats on demand.

State: slack (time to the deadline minus work left), time, no machine or on demand or spot, and the spot market up or
down with the age bin of its spell (market.py). A step costs the price of the machine that runs; a new machine costs a
restart's hours, paid and without progress; at the deadline there must be nothing left. Work keeps the slack, waiting
takes a step of it, a restart takes its hours. Solved backwards in steps of `step_h`; restarts that are no multiple of
it are interpolated. What is kept is thresholds: more slack speaks for the cheaper and less certain way, so one slack
for each work left and market state holds the decision.

The model is that of "Can't Be Late" (Wu et al., NSDI'24, section 3); the hazards that fall with age are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.policy.market import AGE_EDGES_H, BINS, UNSEEN_AGE_H, Chain, Rates, SpotMarket, age_bin

Array = NDArray[Any]
LATE = 30.0
"""Price of an hour that is too late, in on-demand hours: so much that nobody ever plans it."""
NO_END_H = 1e6
WIDTHS_H = np.diff(np.array((0.0, *AGE_EDGES_H, 1e9)))
AFTER_A_LOSS = age_bin(UNSEEN_AGE_H)
"""Age bin of the rest of the market when one of its places is lost."""


@dataclass(frozen=True)
class Problem:
    """What a table is computed for. Prices are ratios to the on-demand price; times are hours."""

    work_h: float
    deadline_h: float
    restart_h: float
    spot_price: float
    step_h: float
    chain: Chain


@dataclass(frozen=True)
class Outlook:
    """Thresholds on the slack, each [work left in steps, age bin of an up spell, then of a down spell]."""

    step_h: float
    buy: Array
    """No machine: on demand at or below."""
    wait: Array
    """No machine: wait above. Between the two a spot machine is taken, if there is one."""
    keep: Array
    """On demand: stay at or below, give it back above."""

    def at(self, threshold: Array, work_left_h: float, market: SpotMarket) -> float:
        """A threshold, between the grid points."""
        where = min(work_left_h / self.step_h, len(threshold) - 1.0)
        low = min(int(where), len(threshold) - 2)
        column = threshold[:, age_bin(market.age_h) + (0 if market.up else BINS)]
        return float(column[low] + (where - low) * (column[low + 1] - column[low]))


def step_of(deadline_h: float, tick_h: float) -> float:
    """A grid as fine as the time between decisions, but for tables of more than 600 steps: then a multiple of it."""
    return tick_h * max(1, math.ceil(deadline_h / 600 / tick_h - 1e-9))


@lru_cache(maxsize=64)
def solve(problem: Problem) -> Outlook:
    """The thresholds of a problem. Takes about 0.1 s for 48 hours of work in 96."""
    return _Solver(problem).run()


class _Solver:
    """Values are [slack, market state]: row j has j - zero steps of slack; the first `zero` rows are late."""

    def __init__(self, problem: Problem) -> None:
        self.p, h = problem, problem.step_h
        self.zero = math.ceil(problem.restart_h / h) + 1
        self.most_h = max(0.0, problem.deadline_h - problem.work_h)
        self.rows = self.zero + math.ceil(self.most_h / h) + 2
        self.row = np.arange(self.rows)
        self.slack_h = (self.row - self.zero) * h
        self.market = _market_moves(problem.chain, h)
        self.kept, self.lost = _machine_moves(problem.chain, h)
        self.no_wait = LATE * (self.slack_h - h < problem.restart_h)[:, None]
        self.no_spot = LATE * (self.slack_h < 2 * problem.restart_h)[:, None]
        self._place_restart()
        work_rows = math.ceil(problem.work_h / h) + 2
        self.found = [np.full((work_rows, 2 * BINS), -1.0) for _ in range(3)]

    def run(self) -> Outlook:
        late = np.maximum(0, self.zero - self.row)[:, None] * self.p.step_h * (1 + LATE)
        spot, idle, on_demand = (np.repeat(late, count, axis=1) for count in (BINS, 2 * BINS, 2 * BINS))
        for step in range(1, len(self.found[0]) + self.rows - self.zero):
            spot, idle, on_demand = self._back(step, spot, idle, on_demand)
        buy, wait, keep = (np.concatenate([found[1:2], found[1:]]) for found in self.found)  # no work is like little
        return Outlook(self.p.step_h, buy, wait, keep)

    def _back(self, step: int, spot: Array, idle: Array, on_demand: Array) -> tuple[Array, Array, Array]:
        """One step towards now; `step` of them are left to the deadline."""
        h, late_h = self.p.step_h, self.p.step_h * LATE
        work_rows = step - (self.row - self.zero)
        done = work_rows <= 0
        spot = self.p.spot_price * h + spot @ self.kept.T + idle @ self.lost.T
        running = h + on_demand @ self.market.T
        spot[done], running[done] = 0.0, 0.0

        waited = idle @ self.market.T
        waited = np.concatenate([waited[:1] + late_h, waited[:-1]]) + self.no_wait
        go = self._restarted(spot) + self.no_spot
        bought = self._restarted(running)
        not_now = np.minimum(waited[:, :BINS], go)
        cheaper = np.concatenate([not_now, waited[:, BINS:]], axis=1)
        idle, on_demand = np.minimum(bought, cheaper), np.minimum(running, cheaper)
        idle[done], on_demand[done] = 0.0, 0.0
        self._note(work_rows, (idle == bought, idle < waited, on_demand == running))
        return spot, idle, on_demand

    def _place_restart(self) -> None:
        where = self.row - self.p.restart_h / self.p.step_h
        self.low = np.clip(np.floor(where).astype(int), 0, self.rows - 2)
        self.share = np.clip(where - self.low, 0.0, 1.0)[:, None]
        self.below = np.maximum(0.0, -where)[:, None] * self.p.step_h * (1 + LATE)

    def _restarted(self, running: Array) -> Array:
        """The value of a new machine: as one that runs, with a restart's hours less of slack."""
        between: Array = (1 - self.share) * running[self.low] + self.share * running[self.low + 1] + self.below
        return between

    def _note(self, work_rows: Array, chosen: tuple[Array, Array, Array]) -> None:
        """The largest slack at which each is still chosen. What is never turned down at the top has no end."""
        inside = (work_rows > 0) & (work_rows < len(self.found[0])) & (self.row >= self.zero)
        where, slack_h = work_rows[inside], self.slack_h[inside][:, None]
        open_h = np.where(self.row[inside] == self.rows - 1, NO_END_H, self.slack_h[inside])[:, None]
        for found, picked, ends_h in zip(self.found, chosen, (slack_h, open_h, slack_h), strict=True):
            found[where] = np.maximum(found[where], np.where(picked[inside], ends_h, -1.0))


def _aged(rates: Rates, step_h: float) -> tuple[Array, Array]:
    """Of one step: the chance of an end in each age bin, and the moves between bins of a spell that goes on."""
    ends = 1 - np.exp(-np.array(rates) * step_h)
    older = np.minimum(1.0, step_h / WIDTHS_H)
    moves = np.diag(1 - older)
    moves[np.arange(BINS), np.minimum(np.arange(BINS) + 1, BINS - 1)] += older
    return ends, (1 - ends)[:, None] * moves


def _market_moves(chain: Chain, step_h: float) -> Array:
    """Transition matrix of the market: up bins, then down bins. A new spell begins in its first bin."""
    up_ends, up = _aged(chain.up_ends, step_h)
    down_ends, down = _aged(chain.down_ends, step_h)
    moves = np.zeros((2 * BINS, 2 * BINS))
    moves[:BINS, :BINS], moves[BINS:, BINS:] = up, down
    moves[:BINS, BINS] = up_ends
    moves[BINS:, 0] = down_ends
    return moves


def _machine_moves(chain: Chain, step_h: float) -> tuple[Array, Array]:
    """Of a spot machine: to itself, older; and to a market without it."""
    ends, kept = _aged(chain.machine_ends, step_h)
    lost = np.zeros((BINS, 2 * BINS))
    lost[:, AFTER_A_LOSS] = ends * chain.elsewhere
    lost[:, BINS] = ends * (1 - chain.elsewhere)
    return kept, lost
