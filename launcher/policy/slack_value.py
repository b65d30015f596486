"""The value of slack: a dynamic program over time and work left that decides when waiting for spot beats on demand.

State: slack (time to the deadline minus work left), time, no machine or on demand or spot, and the spot market up or
down with the age bin of its spell (market.py). A step costs the price of the running machine. A new machine costs a
restart (hours that are paid without progress) and a restore (dollars), so a preemption costs both. At the deadline no
work may be left. Work keeps the slack, waiting uses up a step of it, a restart uses up its hours. The program is solved
backwards in steps of `step_h`, on a grid of slack and work that is `finer` times as fine (restarts that are not a
multiple of it are interpolated). Only thresholds are kept: more slack favours the cheaper and less certain choice, so
one slack value for each work left and market state encodes the decision.

The model is that of "Can't Be Late" (Wu et al., NSDI'24, section 3); the hazards that fall with age are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.policy.spot.market import AGE_EDGES_H, BINS, UNSEEN_AGE_H, Chain, Rates, SpotMarket, age_bin

Array = NDArray[Any]
LATE = 30.0
"""Price of an hour past the deadline, in on-demand hours: so high that it is never planned."""
NO_END_H = 1e6
WIDTHS_H = np.diff(np.array((0.0, *AGE_EDGES_H, 1e9)))
AFTER_A_LOSS = age_bin(UNSEEN_AGE_H)
"""Age bin of the rest of the market when a machine is lost."""


class Restores(NamedTuple):
    """What moving a checkpoint to a new machine costs, in hours of the on-demand machine.

    The first machine of a run restores nothing, but is counted as if it did.
    """

    spot: float = 0.0
    on_demand: float = 0.0


NO_RESTORES = Restores()
"""A bucket without egress fees, or machines in its own cloud."""


@dataclass(frozen=True)
class Problem:
    """The inputs of a table. Prices are ratios to the on-demand price; times are hours."""

    work_h: float
    deadline_h: float
    restart_h: float
    spot_price: float
    step_h: float
    chain: Chain
    finer: int = 1
    """Grid points of slack and work per step."""
    restores: Restores = NO_RESTORES


@dataclass(frozen=True)
class SlackTable:
    """Thresholds on the slack, each [work left in grid points, age bin of an up spell, then of a down spell]."""

    grid_h: float
    buy: Array
    """Without a machine: buy on demand at or below."""
    wait: Array
    """Without a machine: wait above. Between `buy` and `wait`, take a spot machine if there is one."""
    keep: Array
    """On demand: stay at or below, release it above."""
    on_spot: Array
    """Cost to finish from a spot machine, in on-demand hours: [hours to the deadline in steps, slack in grid points
    from `first_slack` on]."""
    first_slack: int
    step_h: float

    def at(self, threshold: Array, work_left_h: float, market: SpotMarket) -> float:
        """A threshold, interpolated between the grid points."""
        where = min(work_left_h / self.grid_h, len(threshold) - 1.0)
        low = min(int(where), len(threshold) - 2)
        column = threshold[:, age_bin(market.age_h) + (0 if market.up else BINS)]
        return float(column[low] + (where - low) * (column[low + 1] - column[low]))

    def slack_cost(self, work_left_h: float, slack_h: float, lost_h: float) -> float:
        """Cost of losing `lost_h` hours of slack for a run on spot, in on-demand hours; never negative.

        Slack beyond the table counts as the table's largest.
        """
        return max(0.0, self._cost(work_left_h, slack_h - lost_h) - self._cost(work_left_h, slack_h))

    def _cost(self, work_left_h: float, slack_h: float) -> float:
        most = self.on_spot.shape[1] - 1
        row = min(max(slack_h / self.grid_h + self.first_slack, 0.0), float(most))
        step = (work_left_h + (row - self.first_slack) * self.grid_h) / self.step_h
        earlier = self.on_spot[min(max(int(step), 0), len(self.on_spot) - 1)]
        later = self.on_spot[min(max(int(step) + 1, 0), len(self.on_spot) - 1)]
        low = min(int(row), most - 1)
        share, rest = row - low, step - int(step)
        near = (1 - rest) * earlier + rest * later
        return float((1 - share) * near[low] + share * near[low + 1])


def step_of(deadline_h: float, tick_h: float) -> float:
    """The step of a table, in hours: a multiple of the time between decisions.

    It is six minutes, or 1/240 of the time to the deadline if that is shorter, or 1/600 of it if that is longer.
    """
    wanted_h = max(deadline_h / 600, min(0.1, deadline_h / 240))
    return tick_h * max(1, math.ceil(wanted_h / tick_h - 0.5 - 1e-9))


@lru_cache(maxsize=256)
def solve(problem: Problem) -> SlackTable:
    """The thresholds of a problem. Takes about a second for 48 hours of work in 96, three times as fine as a step."""
    return _Solver(problem).run()


class _Solver:
    """Values are [slack, market state]: row j has j - zero grid points of slack; the first `zero` rows are late."""

    def __init__(self, problem: Problem) -> None:
        self.p, self.m = problem, problem.finer
        self.grid_h = problem.step_h / self.m
        self.zero = math.ceil(problem.restart_h / self.grid_h - 1e-9) + self.m
        most_h = max(0.0, problem.deadline_h - problem.work_h)
        self.rows = self.zero + math.ceil(most_h / self.grid_h - 1e-9) + 1 + self.m
        self.row = np.arange(self.rows)
        self.slack_h = (self.row - self.zero) * self.grid_h
        self.market = _market_moves(problem.chain, problem.step_h)
        self.kept, self.lost = _machine_moves(problem.chain, problem.step_h)
        self.no_wait = LATE * (self.slack_h - problem.step_h < problem.restart_h - 1e-9)[:, None]
        self.no_spot = LATE * (self.slack_h < 2 * problem.restart_h - 1e-9)[:, None]
        self._place_restart()
        self.work_rows = math.ceil(problem.work_h / self.grid_h - 1e-9) + 2
        self.thresholds = [np.full((self.work_rows, 2 * BINS), -1.0) for _ in range(3)]

    def run(self) -> SlackTable:
        late = np.maximum(0, self.zero - self.row)[:, None] * self.grid_h * (1 + LATE)
        spot, idle, on_demand = (np.repeat(late, count, axis=1) for count in (BINS, 2 * BINS, 2 * BINS))
        values = [spot[:, AFTER_A_LOSS]]
        for step in range(1, math.ceil((self.work_rows + self.rows - self.zero) / self.m)):
            spot, idle, on_demand = self._back(step, spot, idle, on_demand)
            values.append(spot[:, AFTER_A_LOSS])
        buy, wait, keep = (self._merged(threshold) for threshold in self.thresholds)
        on_spot = np.stack(values).astype(np.float32)
        return SlackTable(self.grid_h, buy, wait, keep, on_spot, self.zero, self.p.step_h)

    def _back(self, step: int, spot: Array, idle: Array, on_demand: Array) -> tuple[Array, Array, Array]:
        """One step backwards in time; `step` steps are left to the deadline."""
        work_rows = step * self.m - (self.row - self.zero)
        work_h = work_rows[:, None] * self.grid_h
        done, last = work_rows <= 0, (work_h > 0) & (work_h <= self.p.step_h)
        spot = self.p.spot_price * self.p.step_h + spot @ self.kept.T + idle @ self.lost.T
        running = self.p.step_h + on_demand @ self.market.T
        spot = np.where(last, self.p.spot_price * work_h, spot)  # done within the step
        running = np.where(last, work_h, running)
        spot[done], running[done] = 0.0, 0.0

        waited = self._waited(idle @ self.market.T)
        go = self._started(spot, self.p.restores.spot) + self.no_spot
        bought = self._started(running, self.p.restores.on_demand)
        not_now = np.minimum(waited[:, :BINS], go)
        cheaper = np.concatenate([not_now, waited[:, BINS:]], axis=1)
        idle, on_demand = np.minimum(bought, cheaper), np.minimum(running, cheaper)
        idle[done], on_demand[done] = 0.0, 0.0
        self._note(work_rows, (idle == bought, idle < waited, on_demand == running))
        return spot, idle, on_demand

    def _waited(self, idle: Array) -> Array:
        """The value after a step without a machine, which uses up one step of slack."""
        missing_h = np.arange(self.m, 0, -1)[:, None] * self.grid_h * LATE
        later: Array = np.concatenate([idle[:1] + missing_h, idle[: -self.m]]) + self.no_wait
        return later

    def _place_restart(self) -> None:
        where = self.row - self.p.restart_h / self.grid_h
        self.low = np.clip(np.floor(where + 1e-9).astype(int), 0, self.rows - 2)
        self.share = np.clip(where - self.low, 0.0, 1.0)[:, None]
        self.below = np.maximum(0.0, -where)[:, None] * self.grid_h * (1 + LATE)

    def _started(self, running: Array, restore: float) -> Array:
        """The value of a new machine, including its restore."""
        started: Array = self._restarted(running) + restore
        return started

    def _restarted(self, running: Array) -> Array:
        """The value of a running machine with the slack reduced by a restart."""
        between: Array = (1 - self.share) * running[self.low] + self.share * running[self.low + 1] + self.below
        return between

    def _note(self, work_rows: Array, chosen: tuple[Array, Array, Array]) -> None:
        """Record the largest slack at which each is still chosen; no limit if chosen up to the top of the grid."""
        inside = (work_rows > 0) & (work_rows < self.work_rows) & (self.row >= self.zero)
        where, slack_h = work_rows[inside], self.slack_h[inside][:, None]
        open_h = np.where(self.row[inside] >= self.rows - self.m, NO_END_H, self.slack_h[inside])[:, None]
        for threshold, picked, ends_h in zip(self.thresholds, chosen, (slack_h, open_h, slack_h), strict=True):
            threshold[where] = np.maximum(threshold[where], np.where(picked[inside], ends_h, -1.0))

    def _merged(self, threshold: Array) -> Array:
        """Merge neighbouring amounts of work, because one amount covers only every `finer`-th slack.

        Together, the neighbours cover every slack. No work is treated like little work.
        """
        rows = range(len(threshold))
        near = [threshold[max(1, row - self.m // 2) : row - self.m // 2 + self.m] for row in rows[1:]]
        merged = np.stack([part.max(axis=0) if len(part) else threshold[-1] for part in near])
        return np.concatenate([merged[:1], merged])


def _aged(rates: Rates, step_h: float) -> tuple[Array, Array]:
    """For one step: the chance of an end in each age bin, and the moves between bins of a spell that continues."""
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
    """Transitions of a spot machine: to itself, older; and to a market without it."""
    ends, kept = _aged(chain.machine_ends, step_h)
    lost = np.zeros((BINS, 2 * BINS))
    lost[:, AFTER_A_LOSS] = ends * chain.elsewhere
    lost[:, BINS] = ends * (1 - chain.elsewhere)
    return kept, lost
