"""A plan in a simulated world: its machines, its saves, and the up and down spells of a spot market. Pure.

The world: a spot market that is up or down in spells (policy/spot/market.py; with several zones, one may follow
another), on-demand machines that are always available, a start for each new machine, saves that slow the training, and
preemptions that lose the work since the last save.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.policy.settings import Settings
from launcher.policy.slack_value import SlackTable
from launcher.policy.spot.market import AGE_EDGES_H, Chain, Rates

Floats = NDArray[np.float64]
NEVER_H = 1e9


class Spot(NamedTuple):
    """The spot half of a plan."""

    price: float
    """$ per hour in the zone tried first."""
    price_elsewhere: float
    """$ per hour in the next zones, if the market is still up after the first machine was preempted."""
    chain: Chain
    """The market: ends of its zones' spells, the chance of another zone then, ends of its stock-outs."""
    restore_usd: float = 0.0
    """Restore cost of a checkpoint in the policy's decisions. It isn't part of a run's `cost`."""
    ends_elsewhere: Rates | None = None
    """Preemptions of machines in the next zones, if they differ from the first's."""


class OnDemand(NamedTuple):
    """The on-demand half of a plan."""

    price: float
    speed: float = 1.0
    """Speed of its GPUs relative to the spot machine's (at least 1: the slack calculation relies on that)."""
    restore_usd: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """One plan. Times are hours."""

    work_h: float
    """Work on the spot machine (without one, on the on-demand machine), without saves."""
    start_h: float
    spot: Spot | None = None
    on_demand: OnDemand | None = None
    slowdown: float = 0.0
    """Share of the training time that saves cost."""
    interval_h: float = 1 / 6
    """Time between saves."""
    upload_h: float = 0.0
    """Time from a save to its commit; also lost if the machine is preempted before."""
    deadline_h: float | None = None
    table: SlackTable | None = None
    """The policy's table, with a deadline and both halves."""
    settings: Settings = field(default_factory=Settings)


class SpellLengths:
    """Exact lengths, by inversion, of spells whose hazard is constant within each age bin."""

    def __init__(self, rates: Rates) -> None:
        self.ages = np.array((0.0, *AGE_EDGES_H, NEVER_H))
        self.hazard = np.concatenate([[0.0], np.cumsum(np.array(rates) * np.diff(self.ages))])

    def rest(self, age_h: Floats, chance: Floats) -> Floats:
        """Remaining length of spells of that age; `chance` is uniform in (0, 1]."""
        target = np.interp(age_h, self.ages, self.hazard) - np.log(chance)
        return np.asarray(np.interp(target, self.hazard, self.ages) - age_h)

    def age_at_random_time(self, chance: Floats, from_h: float = 0.0) -> Floats:
        """The age of the spell at a random moment, at least `from_h`: its density is the normalized survival."""
        grid, mass = self._survived(from_h)
        return np.asarray(np.interp(chance * mass[-1], mass, grid))

    def mean_rest_h(self, from_h: float) -> float:
        """Mean remaining length of a spell of that age."""
        return float(self._survived(from_h)[1][-1])

    def _survived(self, from_h: float) -> tuple[Floats, Floats]:
        """Ages, and the mean hours that a spell of age `from_h` lives until then."""
        grid = from_h + np.concatenate([np.linspace(0, 12, 600), np.linspace(12, 400, 600)[1:]])
        hazard = np.interp(grid, self.ages, self.hazard)
        survival = np.exp(hazard[0] - hazard)
        mass = np.concatenate([[0.0], np.cumsum((survival[1:] + survival[:-1]) / 2 * np.diff(grid))])
        return grid, mass
