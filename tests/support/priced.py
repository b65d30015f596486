"""The policy as it lives, on recorded zones with prices: what it pays over a schedule that knows the future.

    python -m tests.support.priced FOLDER [--work 24] [--deadline 1.2] [--zones A,B,...] [--starts 4]

Each job is a whole run of the real conductor (tests/support/live_world.py): it sees a zone only by asking it. FOLDER holds one
JSON file a zone (`metadata`: zone, gap_seconds, spot_usd_h, on_demand_usd_h; `data`: machines that could be had). The
cheapest on-demand price is always available. The bound is an exact dynamic program over the trace's ticks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from launcher.policy.model import Place
from tests.support.live_world import Always, Ledger, LiveWorld, Market, Trainer, alone

NODE = 8
"""Machines of one GPU that have to be there for a node of eight."""
RESTART_TICKS = 1


class Zone(NamedTuple):
    """One zone's trace."""

    name: str
    tick_h: float
    spot_usd: float
    on_demand_usd: float
    up: np.ndarray

    def place(self, *, spot: bool = True) -> Place:
        region = self.name.rsplit("-", 1)[0]
        return Place("gcp", region, self.name, "H100:8", spot, self.spot_usd if spot else self.on_demand_usd)


class Traced:
    """A zone of a trace from one moment on."""

    def __init__(self, zone: Zone, start: int) -> None:
        self._up, self._tick_h = zone.up[start:], zone.tick_h

    def lives_h(self, hour: float) -> float:
        tick = int(hour / self._tick_h)
        if tick >= len(self._up) or not self._up[tick]:
            return 0.0
        down = np.flatnonzero(~self._up[tick:])
        return float((tick + down[0]) * self._tick_h - hour) if len(down) else 1e9


def read_zones(folder: Path) -> list[Zone]:
    """Every zone of the folder."""
    zones = []
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        meta, up = told["metadata"], np.array(told["data"]) >= NODE
        zones.append(Zone(meta["zone"], meta["gap_seconds"] / 3600, meta["spot_usd_h"], meta["on_demand_usd_h"], up))
    return zones


def optimum_usd(zones: list[Zone], start: int, work_h: float, deadline_h: float) -> float:
    """The cheapest schedule of somebody who knows the future; a new machine's first tick brings nothing."""
    tick_h = zones[0].tick_h
    ticks, work = int(deadline_h / tick_h), round(work_h / tick_h)
    prices = np.array([*(zone.spot_usd for zone in zones), min(zone.on_demand_usd for zone in zones)]) * tick_h
    up = np.array([*(zone.up[start : start + ticks] for zone in zones), np.ones(ticks, bool)])
    value = np.full((len(prices) + 1, work + 1), np.inf)
    value[:, 0] = 0.0
    for tick in reversed(range(ticks)):
        there = up[:, tick]
        start_usd = np.where(there[:, None], prices[:, None] + value[:-1], np.inf).min(axis=0)
        idle = np.minimum(value[-1], start_usd)
        run = np.full((len(prices), work + 1), np.inf)
        run[:, 1:] = np.where(there[:, None], prices[:, None] + value[:-1, :-1], np.inf)
        value = np.concatenate([np.minimum(run, idle), idle[None]])
        value[:, 0] = 0.0
    return float(value[-1, work])


def played(zones: list[Zone], start: int, work_h: float, deadline_h: float) -> Ledger:
    """The conductor's run."""
    cheapest = min(zones, key=lambda zone: zone.on_demand_usd)
    markets: dict[Place, Market] = {zone.place(): Traced(zone, start) for zone in zones}
    markets[cheapest.place(spot=False)] = Always()
    trainer = Trainer(hours=work_h, restart_h=RESTART_TICKS * zones[0].tick_h - 0.03, save_every_h=1 / 6)
    world = LiveWorld(markets, trainer, planned_hours=work_h, deadline_h=deadline_h, look_h=1 / 30, seed=start)
    with alone():
        return asyncio.run(world.run())


def main() -> None:
    """Print a line a job, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=float, default=24.0)
    parser.add_argument("--deadline", type=float, default=1.2, help="over the work")
    parser.add_argument("--zones", help="names, separated by commas")
    parser.add_argument("--starts", type=int, default=4)
    asked = parser.parse_args()
    zones = [zone for zone in read_zones(asked.folder) if not asked.zones or zone.name in asked.zones.split(",")]
    deadline_h = asked.deadline * asked.work
    last = len(zones[0].up) - int(deadline_h / zones[0].tick_h) - 1
    ratios, late = [], 0
    for start in sorted(random.Random(0).sample(range(last), asked.starts)):
        told, best = played(zones, start, asked.work, deadline_h), optimum_usd(zones, start, asked.work, deadline_h)
        late += told.finished_h is None or told.finished_h > deadline_h
        ratios.append(told.spent_usd / best)
        sys.stdout.write(
            f"start {start}: ${told.spent_usd:.0f} against ${best:.0f} ({ratios[-1]:.3f}), on demand "
            f"${told.usd_of(spot=False):.0f}, {len(told.machines)} machines, {told.why}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"mean {mean(ratios):.3f}, late {late} of {len(ratios)}\n")


if __name__ == "__main__":
    main()
