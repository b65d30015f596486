"""Compare policies on recorded spot traces: a table by scenario, with intervals, and a plot by the slack.

    pip install numba
    python docs/examples/policy/compare.py FOLDER-OF-THE-SPOT-REFEREE [-o json] [--plot OUT.png]

The referee (a trace-driven simulator of "Can't Be Late", Wu et al., NSDI'24) brings the other policies, the traces and
the bound: the cost of a schedule that knows the future. Ours is the code that runs, `RefereePolicy`. Every policy gets
the same jobs: 12 and 48 hours of work with deadlines of 1.08 to 2 times the work, begun at 20 moments of each trace.

A figure of the table is the mean over the eight kinds of job of cost against cost (sums over the jobs of a kind), as
the referee counts. Its interval is of 95 %: a bootstrap over blocks of 96 hours of a trace, in which all jobs and all
policies of a block stay together. The mean over the scenarios takes both restarts of a block together, too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.replay.referee_adapter import RefereePolicy

Array = NDArray[Any]
SLACKS = (1.08, 1.25, 1.5, 2.0)
"""Deadline over work."""
WORK_H = (12.0, 48.0)
RESTARTS_H = (0.05, 0.2)
SPOT_PRICE = 0.35
STARTS = 20
BLOCK_H = 96.0
DRAWS = 400
"""Of the bootstrap."""

ON_DEMAND, SKYPILOT, UP, UP_A8 = "on demand", "SkyPilot: spot, else on demand", "UP as released", "UP_A8"
OURS, BOUND = "ours", "knows the future"
COLORS = {
    ON_DEMAND: "0.5", SKYPILOT: "tab:orange", UP: "tab:olive", UP_A8: "tab:green", OURS: "tab:blue", BOUND: "k"
}  # fmt: skip
SCENARIOS = {
    "m2 single": "one zone, 1 node",
    "8gpu us-west-2a early": "one zone, 8-GPU node",
    "4-node us-east-2a": "one zone, 4 nodes",
    "pool 1c,1d early": "two zones, 1 node",
}
"""The referee's groups of traces, for people."""


@dataclass
class Cell:
    """All jobs of one scenario: arrays of the same length, by policy where they are dictionaries."""

    group: str
    restart_h: float
    work_h: list[float] = field(default_factory=list)
    slack: list[float] = field(default_factory=list)
    block: list[int] = field(default_factory=list)
    cost: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COLORS})
    """Hours of the on-demand machine."""
    late: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in COLORS})

    @property
    def name(self) -> str:
        return f"{SCENARIOS.get(self.group, self.group)}, restart {self.restart_h * 60:.0f} min"


class Share(NamedTuple):
    """Cost against cost, less one (or, of on demand, as it is), and its 95 % interval."""

    mean: float
    low: float
    high: float


class Row(NamedTuple):
    """A line of the table."""

    scenario: str
    jobs: int
    blocks: int
    against_up_a8: dict[str, Share]
    up_a8_of_on_demand: Share
    late: dict[str, int]


def main() -> None:
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("referee", type=Path, help="its folder")
    wanted.add_argument("-o", "--output", choices=["markdown", "json"], default="markdown")
    wanted.add_argument("--plot", type=Path, help="an image of the cost by slack, with the shortest restart")
    told = wanted.parse_args()
    cells = list(played(told.referee))
    rows = table_of(cells)
    print(as_json(rows) if told.output == "json" else as_markdown(rows))
    if told.plot:
        draw([cell for cell in cells if cell.restart_h == RESTARTS_H[0]], told.plot)


# --- playing --------------------------------------------------------------------------------------------


def played(referee: Path) -> Iterator[Cell]:
    """Every job of the referee's development traces, under every policy."""
    sys.path.insert(0, str(referee))
    import sim
    import study

    for group in json.loads((referee / "split.json").read_text())["dev"]:
        markets = study.prep(group["markets"], SPOT_PRICE)
        for restart_h in RESTARTS_H:
            cell = Cell(group["name"], restart_h)
            for number, market in enumerate(markets):
                for work_h in WORK_H:
                    for slack in SLACKS:
                        _play(sim, study, market, cell, work_h, slack, number)
            print(f"played: {cell.name}", file=sys.stderr)
            yield cell


def _play(sim: Any, study: Any, market: Any, cell: Cell, work_h: float, slack: float, number: int) -> None:
    """One kind of job in one market, at each of its starts."""
    tick_h, trace, price, trailing, ages, lives = market
    deadline_h, restart_h = work_h * slack, cell.restart_h
    ticks = math.ceil(deadline_h / tick_h)
    table = np.zeros((3, 4, 6, 1, 1), np.int8)

    def theirs(policy: int, start: int, guard: bool, length: int) -> tuple[float, float]:
        parameters = np.array([1.0 if len(price) > 1 else 0.0, 0.1])
        window = slice(start, start + length)
        told = (trailing[start - 1], ages[start - 1], lives[window], 0.0, 0.0, table, study.EDGES, 1.0, study.SV())
        cost, finish, _, _ = sim.run(
            policy, parameters, guard, trace[window], tick_h, work_h, deadline_h, restart_h, price, *told
        )
        return cost, finish

    for start in study.starts_of(tick_h, trace, deadline_h, STARTS, 101 + number):
        window = trace[start : start + ticks]
        ours = RefereePolicy()
        history = trace[max(0, start - int(72 / tick_h)) : start]
        ours.reset({"tick": tick_h, "price": price, "work": work_h, "deadline": deadline_h, "d": restart_h,
                    "history": history})  # fmt: skip
        more = min(len(trace) - start, 3 * ticks)
        jobs = {
            ON_DEMAND: (work_h + restart_h, 0.0),
            SKYPILOT: theirs(sim.P_SKY, start, False, more),
            UP: theirs(sim.P_UPK, start, True, ticks),
            UP_A8: theirs(sim.P_UP8, start, True, ticks),
            OURS: sim.simulate(ours, window, tick_h, work_h, deadline_h, restart_h, price),
            BOUND: (sim.omniscient(window[None], tick_h, work_h, deadline_h, restart_h, price)[0][0], 0.0),
        }
        cell.work_h.append(work_h)
        cell.slack.append(slack)
        cell.block.append(number * 10000 + int(start * tick_h / BLOCK_H))
        for name, (cost, finish) in jobs.items():
            cell.cost[name].append(cost)
            cell.late[name].append(finish > deadline_h + 1e-6)


# --- the table ------------------------------------------------------------------------------------------


def table_of(cells: list[Cell]) -> list[Row]:
    """A row for each scenario, and their mean."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    weights = [drawn(cell.block, groups.index(cell.group)) for cell in cells]
    rows = [_row(cell.name, [cell], [weight]) for cell, weight in zip(cells, weights, strict=True)]
    return [*rows, _row("mean", cells, weights)]


def _row(name: str, cells: list[Cell], weights: list[Array]) -> Row:
    def share(mine: str, other: str, less: float) -> Share:
        values = np.mean([against(c, mine, other, w) for c, w in zip(cells, weights, strict=True)], axis=0) - less
        return Share(float(values[0]), *(float(level) for level in np.quantile(values[1:], [0.025, 0.975])))

    return Row(
        name,
        sum(len(cell.block) for cell in cells),
        sum(len(set(cell.block)) for cell in cells),
        {policy: share(policy, UP_A8, 1.0) for policy in COLORS},
        share(UP_A8, ON_DEMAND, 0.0),
        {policy: sum(sum(cell.late[policy]) for cell in cells) for policy in COLORS},
    )


def drawn(blocks: list[int], seed: int) -> Array:
    """How often each job counts: [draws + 1, jobs]. The first line is the jobs as they are.

    The blocks are drawn, with all their jobs. The same seed and blocks give the same draws, whatever the restart.
    """
    found, block_of_job = np.unique(blocks, return_inverse=True)
    random = np.random.default_rng(seed)
    draws = [np.bincount(random.integers(0, len(found), len(found)), minlength=len(found)) for _ in range(DRAWS)]
    counts: Array = np.stack([np.ones(len(found)), *draws])[:, block_of_job]
    return counts


def against(cell: Cell, mine: str, other: str, weights: Array) -> Array:
    """Cost of one policy against another's, [draws + 1]: the mean over kinds of job; a kind that wasn't drawn is left
    out."""
    kinds = np.array([cell.work_h, cell.slack]).T
    costs = np.array([cell.cost[mine], cell.cost[other]])
    ratios = []
    for kind in np.unique(kinds, axis=0):
        these = (kinds == kind).all(axis=1)
        sums = weights[:, these] @ costs[:, these].T
        ratios.append(np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0))
    mean_ratio: Array = np.nanmean(ratios, axis=0)
    return mean_ratio


def as_json(rows: list[Row]) -> str:
    def told(row: Row) -> dict[str, Any]:
        shares = {name: share._asdict() for name, share in row.against_up_a8.items()}
        return row._asdict() | {"against_up_a8": shares, "up_a8_of_on_demand": row.up_a8_of_on_demand._asdict()}

    return json.dumps([told(row) for row in rows], indent=2)


def as_markdown(rows: list[Row]) -> str:
    """In per cent of UP_A8's cost; its own column is in shares of on demand."""

    def percent(row: Row, policy: str) -> str:
        found = row.against_up_a8[policy]
        return f"{found.mean:+.1%} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("%", " %")

    def of_on_demand(row: Row, _: str) -> str:
        return "{:.2f} [{:.2f}, {:.2f}]".format(*row.up_a8_of_on_demand)

    cells: dict[str, Callable[[Row, str], str]] = {
        policy: of_on_demand if policy == UP_A8 else percent for policy in COLORS
    }
    heads = ["UP_A8, of on demand" if policy == UP_A8 else policy for policy in cells]
    lines = [["scenario", *heads], ["---"] * (1 + len(heads))]
    lines += [[row.scenario, *(cell(row, policy) for policy, cell in cells.items())] for row in rows]
    lines.append(["late jobs", *(f"{rows[-1].late[policy]} of {rows[-1].jobs}" for policy in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the plot -------------------------------------------------------------------------------------------


def draw(cells: list[Cell], out: Path) -> None:
    """Cost by slack, a line for each policy: means over all jobs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in COLORS.items():
        points = [_at_slack(cells, name, slack) for slack in SLACKS]
        style = ":" if name == BOUND else "-"
        axis.plot(SLACKS, [cost for cost, _ in points], style, marker="o", color=color, label=name)
        for slack, (cost, late) in zip(SLACKS, points, strict=True):
            if late:
                place = (slack, cost)
                axis.annotate(f"{late:.0%} late", place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xlabel("deadline / hours of work")
    axis.set_ylabel("cost / the same on demand")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=130)


def _at_slack(cells: list[Cell], policy: str, slack: float) -> tuple[float, float]:
    """Mean cost, as a share of on demand, and the share of late jobs."""
    shares, late = [], []
    for cell in cells:
        for number, (work_h, found) in enumerate(zip(cell.work_h, cell.slack, strict=True)):
            if found == slack:
                shares.append(cell.cost[policy][number] / (work_h + cell.restart_h))
                late.append(cell.late[policy][number])
    return mean(shares), mean(late)


if __name__ == "__main__":
    main()
