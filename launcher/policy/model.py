"""A policy's observation and its possible actions. Times are hours, money is US dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from checkpoints.run_log.causes import LaunchCause, Limit, MoveCause, WaitCause
from launcher.policy.spot.market import PRIOR_UP, SpotMarket, mean_spell_h

USUAL_HAZARD_PER_H = 1 / mean_spell_h(PRIOR_UP)
CLOSING_H = 6 / 60
"""Until it is measured: a check, and five minutes for a save and the teardown."""


@dataclass(frozen=True)
class Place:
    """Where a machine can be requested: one zone (or region, if a cloud has no zones), spot or on demand."""

    cloud: str
    region: str
    zone: str | None
    gpus: str
    spot: bool
    price_usd_per_hour: float = field(compare=False)
    """Price of the whole node. Not part of the identity: a price change doesn't make another place."""

    restore_usd: float = field(default=0.0, compare=False)
    """Cost of moving a checkpoint out of its bucket's cloud to a machine here."""

    @property
    def where(self) -> str:
        return f"{self.cloud}/{self.area}"

    @property
    def area(self) -> str:
        """The unit of spot statistics: the zone, or the region if a cloud has no zones."""
        return self.zone or self.region

    def __str__(self) -> str:
        return f"{'spot' if self.spot else 'on-demand'} {self.gpus} in {self.where}"


class Paid(NamedTuple):
    """Machine hours paid, and hours of committed work obtained for them."""

    hours: float = 0.0
    worked_h: float = 0.0


NOTHING_PAID = Paid()


@dataclass(frozen=True)
class PlaceState:
    """A place, and what this run has seen there."""

    place: Place
    preempted_h_ago: float | None = None
    refused_h_ago: float | None = None
    """Hours since it last had no capacity or no quota."""
    out_h: float | None = None
    """Hours since its first refusal after the run's last machine; None = no refusal since then."""
    rest_h: float = 0.0
    """Hours for which it is set aside: its last machines committed no new step (machine_work.py). Infinite = until
    another place has committed one."""
    paid: Paid = NOTHING_PAID
    """The machines of this run here that have ended."""
    up_h: float | None = None
    """Hours for which it has had machines, if that can be observed."""
    churn: float = 1.0
    """Preemptions here relative to the market's average, at equal age of the spell."""
    hazard_per_h: float | None = None
    """Average hazard of a spot machine here; None = as in the observation."""


@dataclass(frozen=True)
class Running:
    """The machine that the run is on."""

    place: Place
    age_h: float
    """Hours since it was requested."""
    restart_left_h: float = 0.0
    """Hours until it does new work."""
    trained: bool = True
    """Has it done a step? Until then, a move would only waste its start."""
    start_h: float = 0.0
    """Hours from its request to its first step, as far as that is known."""
    stuck_h: float = 0.0
    """Hours since the last sign of progress: a new step, or a new phase of its start."""
    uncommitted_h: float = 0.0
    """Hours since the last committed step, or since its start."""
    reserve: bool = False
    """When it was requested, the budget could also have paid for finishing on demand."""

    @property
    def worked_h(self) -> float:
        """Hours since its first step."""
        return self.age_h - self.start_h if self.trained else 0.0


class Effort(NamedTuple):
    """Machines in a row, and their dollars, since the last new committed step."""

    machines: int = 0
    usd: float = 0.0
    stuck: int = 0
    """How many of them were given up because they made no progress."""
    most_usd: float = math.inf
    """The most they may cost together."""
    exhausted: str = ""
    """Why no further machine may be paid for; empty = one may."""


NO_EFFORT = Effort()


@dataclass(frozen=True)
class Observation:
    """Everything that a decision may depend on."""

    places: tuple[PlaceState, ...]
    work_left_h: float
    restart_h: float
    """Hours from the end of one machine to the first new step on the next one."""
    running: Running | None = None
    deadline_h: float | None = None
    """Hours until the last step must be done, so that its save is complete at the deadline; negative if too late."""
    budget_left_usd: float | None = None
    restores: bool = True
    """Does the next machine have a checkpoint to restore?"""
    store_usd_per_h: float = 0.0
    """Storage and request costs."""
    refusals_in_a_row: int = 0
    """Search rounds without success since the last machine."""
    failed_moves: int = 0
    """Unsuccessful moves in a row: the run left an on-demand machine for spot, or an expensive spot machine for on
    demand, and found none."""
    unsaved_h: float = 0.0
    """Work that the running machine has done since its last commit, which a preemption now would lose. Not part of
    `work_left_h`."""
    measured: bool = True
    """Is the remaining work based on this run's own measured speed, rather than on the plan?"""
    whole_h: float = 0.0
    """Work in the whole run, as far as it is known."""
    closing_h: float = CLOSING_H
    """Hours from the decision to release a machine until it is gone: a check, a save and the teardown."""
    save_h: float = 0.0
    """Duration of a save, including the last one, as far as that is known."""
    save_every_h: float = 0.0
    """Time between two saves, as far as that is known."""
    effort: Effort = NO_EFFORT
    hazard_per_h: float = USUAL_HAZARD_PER_H
    """Average hazard of a spot machine, used to price restarts at a place without a hazard of its own."""
    market: SpotMarket | None = None
    """State of the spot market as a whole, if it can be observed. Without it the policy finds out by trying."""


@dataclass(frozen=True)
class Launch:
    """Request a machine at these places, in this order."""

    places: tuple[Place, ...]
    cause: LaunchCause
    reason: str
    """For people, as in the other actions: what is done about an action depends only on its cause."""


@dataclass(frozen=True)
class Wait:
    """Try again after `hours`."""

    hours: float
    cause: WaitCause
    reason: str


@dataclass(frozen=True)
class Stay:
    """Leave the run where it is."""


@dataclass(frozen=True)
class Move:
    """Have the trainer save, release the machine, and decide again."""

    cause: MoveCause
    reason: str
    urgent: bool = False
    """Release the machine even if the trainer doesn't respond: a limit requires it, or there is no progress."""


@dataclass(frozen=True)
class GiveUp:
    """End the run, with its state saved, because continuing would break a limit."""

    limit: Limit
    reason: str


Action = Launch | Wait | Stay | Move | GiveUp
