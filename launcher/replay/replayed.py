"""What is replayed, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What is to be done. Hours; `spot_price` is a share of the on-demand price."""

    work_h: float
    deadline_h: float
    restart_h: float
    spot_price: float
    start_h: float
    """Into the trace."""


@dataclass(frozen=True)
class Stretch:
    """A time on one machine, or on none."""

    where: str
    from_h: float
    to_h: float


@dataclass(frozen=True)
class Played:
    """What came of it. Costs are in hours of the on-demand machine."""

    finish_h: float | None
    cost: float
    on_demand_cost: float
    starts: int
    preemptions: int
    spot_h: float
    on_demand_h: float
    stretches: tuple[Stretch, ...]

    @property
    def saved(self) -> str:
        """Against on demand from the beginning: `31% less than`, `2% more than`, `as much as`."""
        percent = round(100 * (1 - self.cost / self.on_demand_cost))
        return f"{abs(percent)}% {'less' if percent > 0 else 'more'} than" if percent else "as much as"
