"""`notus-launch simulate`: the policy on a recorded trace, tick by tick, and what it did.

The model is the spot referee's: an on-demand machine can always be had and is never taken away, a spot machine goes
with its zone's availability, a new machine costs a restart without progress, and work that was done is never lost.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from checkpoints.errors import UserError
from checkpoints.util.command_line import console
from launcher.policy.referee import IDLE, ON_DEMAND, RefereePolicy
from launcher.policy.trace import Trace, read_traces
from launcher.report.picture import check_picture, draw_replay
from launcher.report.tables import counted

HISTORY_H = 72.0
"""What the policy may know of the time before the start, as in the referee."""


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


def simulate(paths: list[Path], job: Job, output: str, plot: Path | None = None) -> int:
    """Print (and draw, to a PNG or SVG) what the policy does. 0 when the deadline is met, else 3."""
    if plot is not None:
        check_picture(plot)
    trace = read_traces(paths)
    played = play(trace, job)
    if plot is not None:
        draw_replay(plot, trace, job, played)
        sys.stderr.write(f"notus-launch: drawn to {plot}\n")
    if output == "json":
        sys.stdout.write(json.dumps({"job": asdict(job), "zones": trace.zones, **asdict(played)}, indent=2) + "\n")
    else:
        _draw(console(), trace, job, played)
    return 0 if played.finish_h is not None and played.finish_h <= job.deadline_h + 1e-6 else 3


def play(trace: Trace, job: Job) -> Played:
    """The policy from `job.start_h` on until the work is done or the deadline has passed."""
    _check(trace, job)
    begin = round(job.start_h / trace.tick_h)
    prices = [job.spot_price] * len(trace.zones)
    policy = RefereePolicy()
    before = trace.up[max(0, begin - round(HISTORY_H / trace.tick_h)) : begin]
    told = {"tick": trace.tick_h, "work": job.work_h, "deadline": job.deadline_h, "d": job.restart_h, "price": prices}
    policy.reset(told | {"history": before})
    return _Player(trace, job).run(policy, begin)


class _Player:
    def __init__(self, trace: Trace, job: Job) -> None:
        self.trace, self.job = trace, job
        self.mode, self.overhead_h, self.done_h = IDLE, 0.0, 0.0
        self.result = Played(None, 0.0, job.work_h + job.restart_h, 0, 0, 0.0, 0.0, ())

    def run(self, policy: RefereePolicy, begin: int) -> Played:
        for count, up in enumerate(self.trace.up[begin:]):
            now_h = count * self.trace.tick_h
            if self.result.finish_h is not None or now_h >= self.job.deadline_h:
                break
            if self.mode >= 0 and not up[self.mode]:
                self.mode, self.overhead_h = IDLE, 0.0
                self.result = replace(self.result, preemptions=self.result.preemptions + 1)
            self._go(policy.decide(self._seen(now_h, up)))
            self._tick(now_h)
        return self.result

    def _seen(self, now_h: float, up: tuple[bool, ...]) -> dict[str, object]:
        job = self.job
        seen = {"t": now_h, "done": self.done_h, "need": job.work_h, "deadline": job.deadline_h, "d": job.restart_h}
        return seen | {"mode": self.mode, "overhead_left": self.overhead_h, "avail": up}

    def _go(self, mode: int) -> None:
        if mode == self.mode:
            return
        self.mode, self.overhead_h = mode, 0.0 if mode == IDLE else self.job.restart_h
        self.result = replace(self.result, starts=self.result.starts + (mode != IDLE))

    def _tick(self, now_h: float) -> None:
        result, hours = self.result, self.trace.tick_h
        if self.mode != IDLE:
            to_end_h = self.overhead_h + self.job.work_h - self.done_h
            if to_end_h <= hours + 1e-9:
                hours = to_end_h
                result = replace(result, finish_h=now_h + hours)
            self.done_h += max(0.0, hours - self.overhead_h)
            self.overhead_h = max(0.0, self.overhead_h - hours)
        if self.mode == ON_DEMAND:
            result = replace(result, cost=result.cost + hours, on_demand_h=result.on_demand_h + hours)
        elif self.mode != IDLE:
            cost = result.cost + hours * self.job.spot_price
            result = replace(result, cost=cost, spot_h=result.spot_h + hours)
        self.result = replace(result, stretches=_longer(result.stretches, self._where(), now_h, now_h + hours))

    def _where(self) -> str:
        return {IDLE: "waiting", ON_DEMAND: "on demand"}.get(self.mode) or self.trace.zones[self.mode]


def _longer(stretches: tuple[Stretch, ...], where: str, from_h: float, to_h: float) -> tuple[Stretch, ...]:
    if stretches and stretches[-1].where == where:
        return (*stretches[:-1], replace(stretches[-1], to_h=to_h))
    return (*stretches, Stretch(where, from_h, to_h))


def _check(trace: Trace, job: Job) -> None:
    if job.deadline_h < job.work_h + job.restart_h:
        raise UserError(
            f"no machine makes {job.work_h:g} h of work and a start of {job.restart_h:g} h in {job.deadline_h:g} h",
            f"give --deadline {math.ceil(100 * (job.work_h + job.restart_h)) / 100:g}h or more",
        )
    if job.start_h + job.deadline_h > trace.hours:
        raise UserError(
            f"the trace has {trace.hours:.0f} h, and the job needs it from {job.start_h:g} to "
            f"{job.start_h + job.deadline_h:g} h",
            _way_in(trace, job),
        )


def _way_in(trace: Trace, job: Job) -> str:
    """What would fit into the trace; only advice that then works."""
    latest_h, least_h = math.floor(trace.hours - job.deadline_h), job.work_h + job.restart_h
    longest_h = math.floor(10 * (trace.hours - job.start_h)) / 10
    ways = [f"--start {latest_h} or less"] if latest_h >= 0 else []
    ways += [f"--deadline {longest_h:g}h or less"] if longest_h >= least_h else []
    return f"give {' or '.join(ways)}" if ways else "give a longer trace, or fewer --hours and a shorter --deadline"


def _draw(console: Console, trace: Trace, job: Job, played: Played) -> None:
    width = max(20, min(console.width, 110) - 28)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    begin = round(job.start_h / trace.tick_h)
    for zone, name in enumerate(trace.zones):
        up = [
            trace.up[min(begin + _tick_at(job, trace, column, width), len(trace.up) - 1)][zone]
            for column in range(width)
        ]
        table.add_row(f"{name[:18]} has it", "".join("░" if state else " " for state in up))
    for where in (*trace.zones, "on demand", "waiting"):
        inside = [s for s in played.stretches if s.where == where]
        hours = [column * job.deadline_h / width for column in range(width)]
        line = "".join("█" if any(s.from_h <= h < s.to_h for s in inside) else " " for h in hours)
        if inside:
            table.add_row(f"{where[:20]}", line)
    table.add_row("", f"0 h{f'{job.deadline_h:g} h'.rjust(width - 3)}")
    console.print(table)
    end = "not done at the deadline" if played.finish_h is None else f"done after {played.finish_h:.1f} h"
    console.print(
        f"{end} (deadline {job.deadline_h:g} h): {played.spot_h:.1f} h on spot, {played.on_demand_h:.1f} h on demand, "
        f"{counted(played.preemptions, 'preemption')}, {counted(played.starts, 'start')}",
        soft_wrap=True,
    )
    console.print(f"cost: {played.cost:.2f} on-demand hours, {played.saved} on demand alone", soft_wrap=True)


def _tick_at(job: Job, trace: Trace, column: int, width: int) -> int:
    return int(column * job.deadline_h / width / trace.tick_h)
