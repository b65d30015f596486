"""Draw what a run costs by the slack of its deadline, under several policies, on recorded spot traces.

    pip install numba
    python docs/examples/policy/compare.py FOLDER-OF-THE-SPOT-REFEREE OUT.png

The referee (a trace-driven simulator of "Can't Be Late", Wu et al., NSDI'24) brings the other policies, the traces and
the bound: the cost of a schedule that knows the future. Ours is the code that runs, `RefereePolicy`. Costs are shares
of the same work on demand, means over the referee's development markets, for 12 and 48 hours of work.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from launcher.policy.referee import RefereePolicy

SLACKS = (1.08, 1.25, 1.5, 2.0)
"""Deadline over work."""
WORK_H = (12.0, 48.0)
RESTART_H = 0.05
SPOT_PRICE = 0.35
STARTS = 20
COLORS = {
    "on demand": "0.5",
    "SkyPilot: spot, else on demand": "tab:orange",
    "Uniform Progress + A.8": "tab:green",
    "ours": "tab:blue",
    "knows the future": "k",
}


def main(referee: Path, out: Path) -> None:
    sys.path.insert(0, str(referee))
    import sim
    import study

    groups = json.loads((referee / "split.json").read_text())["dev"]
    costs: dict[tuple[str, float], list[float]] = defaultdict(list)
    late: dict[tuple[str, float], list[bool]] = defaultdict(list)
    for group in groups:
        for number, market in enumerate(study.prep(group["markets"], SPOT_PRICE)):
            for work_h in WORK_H:
                for slack in SLACKS:
                    jobs = played(sim, study, market, work_h, work_h * slack, 101 + number)
                    for name, cost, missed in jobs:
                        costs[name, slack].append(cost / (work_h + RESTART_H))
                        late[name, slack].append(missed)
            print(f"{group['name']}: market {number + 1} of {len(group['markets'])}", file=sys.stderr)
    draw(costs, late, out)
    for name in COLORS:
        row = [f"{mean(costs[name, slack]):.3f} ({mean(late[name, slack]):.0%} late)" for slack in SLACKS]
        print(f"{name:32s}", *row)


def played(sim: Any, study: Any, market: Any, work_h: float, deadline_h: float, seed: int) -> list[tuple[Any, ...]]:
    """Name, cost and whether it was late, of each policy at each start."""
    tick_h, trace, price, trailing, ages, lives = market
    ticks = math.ceil(deadline_h / tick_h)
    table = np.zeros((3, 4, 6, 1, 1), np.int8)
    found = []

    def theirs(policy: int, start: int, guard: bool, length: int) -> tuple[float, float]:
        parameters = np.array([1.0 if len(price) > 1 else 0.0, 0.1])
        window = slice(start, start + length)
        told = (trailing[start - 1], ages[start - 1], lives[window], 0.0, 0.0, table, study.EDGES, 1.0, study.SV())
        cost, finish, _, _ = sim.run(
            policy, parameters, guard, trace[window], tick_h, work_h, deadline_h, RESTART_H, price, *told
        )
        return cost, finish

    for start in study.starts_of(tick_h, trace, deadline_h, STARTS, seed):
        window = trace[start : start + ticks]
        ours = RefereePolicy()
        history = trace[max(0, start - int(72 / tick_h)) : start]
        ours.reset({"tick": tick_h, "price": price, "work": work_h, "deadline": deadline_h, "d": RESTART_H,
                    "history": history})  # fmt: skip
        more = min(len(trace) - start, 3 * ticks)
        jobs = {
            "on demand": (work_h + RESTART_H, 0.0),
            "SkyPilot: spot, else on demand": theirs(sim.P_SKY, start, False, more),
            "Uniform Progress + A.8": theirs(sim.P_UP8, start, True, ticks),
            "ours": sim.simulate(ours, window, tick_h, work_h, deadline_h, RESTART_H, price),
        }
        found += [(name, cost, finish > deadline_h + 1e-6) for name, (cost, finish) in jobs.items()]
        bound = sim.omniscient(window[None], tick_h, work_h, deadline_h, RESTART_H, price)[0][0]
        found.append(("knows the future", bound, False))
    return found


def draw(costs: dict[tuple[str, float], list[float]], late: dict[tuple[str, float], list[bool]], out: Path) -> None:
    """A line for each policy."""
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in COLORS.items():
        style = ":" if name == "knows the future" else "-"
        axis.plot(SLACKS, [mean(costs[name, slack]) for slack in SLACKS], style, marker="o", color=color, label=name)
        for slack in SLACKS:
            if share := mean(late[name, slack]):
                place = (slack, mean(costs[name, slack]))
                axis.annotate(f"{share:.0%} late", place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axis.set_xlabel("deadline / hours of work")
    axis.set_ylabel("cost / the same on demand")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
