"""What a policy sees and what it may say. Times are hours, money is US dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from checkpoints.run_log.causes import LaunchCause, Limit, MoveCause, WaitCause
from launcher.policy.spot.market import PRIOR_UP, SpotMarket, mean_spell_h

USUAL_HAZARD_PER_H = 1 / mean_spell_h(PRIOR_UP)
CLOSING_H = 6 / 60
"""Until it is measured: a look, and five minutes for a save and the teardown."""


@dataclass(frozen=True)
class Place:
    """A market that a machine can be asked for: one zone (or region, where a cloud has no zones), spot or on demand."""

    cloud: str
    region: str
    zone: str | None
    gpus: str
    spot: bool
    price_usd_per_hour: float = field(compare=False)
    """Of the whole node. Not part of the identity: a price that moves doesn't make another place."""

    restore_usd: float = field(default=0.0, compare=False)
    """For the way of a checkpoint out of its bucket's cloud to a machine here."""

    @property
    def where(self) -> str:
        return f"{self.cloud}/{self.area}"

    @property
    def area(self) -> str:
        """What a spot machine is counted by: its zone, or its region where a cloud has no zones."""
        return self.zone or self.region

    def __str__(self) -> str:
        return f"{'spot' if self.spot else 'on-demand'} {self.gpus} in {self.where}"


class Paid(NamedTuple):
    """What machines cost in hours, and what they brought in hours of committed work."""

    hours: float = 0.0
    worked_h: float = 0.0


NOTHING_PAID = Paid()


@dataclass(frozen=True)
class Known:
    """A place, and what this run has seen there."""

    place: Place
    preempted_h_ago: float | None = None
    refused_h_ago: float | None = None
    """Since the last time that it had no capacity or no quota."""
    out_h: float | None = None
    """Since the first refusal of a row that no machine has ended; None = it has not refused since the last machine."""
    rest_h: float = 0.0
    """Set aside for that long: its last machines brought no new committed step (machine_work.py). Infinite = until
    another place has brought one."""
    paid: Paid = NOTHING_PAID
    """The machines of this run here that have ended."""
    up_h: float | None = None
    """For how long it has had machines, where somebody can see that."""
    churn: float = 1.0
    """Preemptions here for each one in the market on average, at an equal age of the spell."""
    hazard_per_h: float | None = None
    """Of a spot machine here, on average; None = as in the observation."""


@dataclass(frozen=True)
class Running:
    """The machine that the run is on."""

    place: Place
    age_h: float
    """Since it was asked for."""
    restart_left_h: float = 0.0
    """Of its start: until it does new work."""
    trained: bool = True
    """Has it done a step? Until then a move would only waste its start."""
    start_h: float = 0.0
    """From its request to its first step, as far as that is known."""
    stuck_h: float = 0.0
    """Since the last sign of progress: a new step, or another phase of its start."""
    uncommitted_h: float = 0.0
    """Since the last committed step, or its start."""
    reserve: bool = False
    """When it was asked for, the budget could pay the way to the end on demand besides."""

    @property
    def worked_h(self) -> float:
        """Since its first step."""
        return self.age_h - self.start_h if self.trained else 0.0


class Effort(NamedTuple):
    """Machines in a row, and their dollars, since the last new committed step."""

    machines: int = 0
    usd: float = 0.0
    stuck: int = 0
    """Of them, those that were given up because they made no progress."""
    most_usd: float = math.inf
    """What they may cost."""
    exhausted: str = ""
    """Why no further machine may be paid for this; empty = it may."""


NO_EFFORT = Effort()


@dataclass(frozen=True)
class Observation:
    """Everything that a decision may depend on."""

    places: tuple[Known, ...]
    work_left_h: float
    restart_h: float
    """From the end of one machine to the first new step on the next one."""
    running: Running | None = None
    deadline_h: float | None = None
    """Until the last step has to be done, so that its save is there at the deadline; negative when that has passed."""
    budget_left_usd: float | None = None
    restores: bool = True
    """Does the next machine have a checkpoint to restore?"""
    store_usd_per_h: float = 0.0
    """For keeping checkpoints, and requests."""
    refusals_in_a_row: int = 0
    """Rounds in which no place that was asked had a machine, since the last machine."""
    moves_in_vain: int = 0
    """Times that the run left an on-demand machine for spot and found none, or a dear spot machine and found none on
    demand, since a machine last came some other way."""
    unsaved_h: float = 0.0
    """Work that the running machine has done since its last commit: what a preemption now would lose. Not part of
    `work_left_h`."""
    measured: bool = True
    """Is the work left measured by this run's own speed, and not taken from the plan?"""
    whole_h: float = 0.0
    """Work of the whole run, as far as it is known."""
    closing_h: float = CLOSING_H
    """From the decision to give a machine back until it is gone: a look, a save and the teardown."""
    save_h: float = 0.0
    """A save takes, as far as that is known: the last one, too."""
    save_every_h: float = 0.0
    """Between two saves, as far as that is known."""
    effort: Effort = NO_EFFORT
    hazard_per_h: float = USUAL_HAZARD_PER_H
    """Of a spot machine, on average: what its restarts are counted by where prices are compared, and a place has no
    hazard of its own."""
    market: SpotMarket | None = None
    """Spot as a whole, where it can be seen. Without it the policy tries and asks what is refused."""


@dataclass(frozen=True)
class Launch:
    """Ask these places for a machine, in this order."""

    places: tuple[Place, ...]
    cause: LaunchCause
    reason: str
    """For people, as in the other actions: what is done about an action depends on its cause only."""


@dataclass(frozen=True)
class Wait:
    """Ask again after so many hours."""

    hours: float
    cause: WaitCause
    reason: str


@dataclass(frozen=True)
class Stay:
    """Leave the run where it is."""


@dataclass(frozen=True)
class Move:
    """Have the trainer save, give the machine back, and decide anew."""

    cause: MoveCause
    reason: str
    urgent: bool = False
    """Also from a trainer that doesn't obey: the deadline or the budget wants it, or the machine makes no progress."""


@dataclass(frozen=True)
class GiveUp:
    """End the run, its state saved: going on would break a limit."""

    limit: Limit
    reason: str


Action = Launch | Wait | Stay | Move | GiveUp
