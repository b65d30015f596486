"""The input and the result of a replay."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """The job to replay. Times are hours; `spot_price` is a share of the on-demand price."""

    work_h: float
    deadline_h: float
    restart_h: float
    spot_price: float
    start_h: float
    """Start, in hours into the trace."""


@dataclass(frozen=True)
class Span:
    """A span of time on one machine, or without one."""

    where: str
    from_h: float
    to_h: float


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay. Costs are in hours of the on-demand machine."""

    finish_h: float | None
    cost: float
    on_demand_cost: float
    starts: int
    preemptions: int
    spot_h: float
    on_demand_h: float
    stretches: tuple[Span, ...]

    @property
    def saved(self) -> str:
        """Cost compared with on demand from the beginning: `31% less than`, `2% more than`, `as much as`."""
        percent = round(100 * (1 - self.cost / self.on_demand_cost))
        return f"{abs(percent)}% {'less' if percent > 0 else 'more'} than" if percent else "as much as"
