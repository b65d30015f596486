"""Replay the policy over a recorded trace, tick by tick."""

from __future__ import annotations

import math
from dataclasses import replace

from checkpoints.errors import UserError
from launcher.replay.referee_adapter import IDLE, ON_DEMAND, RefereePolicy
from launcher.replay.replayed import Job, ReplayResult, Span
from launcher.replay.trace import Trace

HISTORY_H = 72.0
"""History before the start that the policy sees, as in the referee."""


def play(trace: Trace, job: Job) -> ReplayResult:
    """Replay the policy from `job.start_h` until the work is done or the deadline has passed."""
    _check(trace, job)
    begin = round(job.start_h / trace.tick_h)
    prices = [job.spot_price] * len(trace.zones)
    policy = RefereePolicy()
    before = trace.up[max(0, begin - round(HISTORY_H / trace.tick_h)) : begin]
    info = {"tick": trace.tick_h, "work": job.work_h, "deadline": job.deadline_h, "d": job.restart_h, "price": prices}
    policy.reset(info | {"history": before})
    return _Player(trace, job).run(policy, begin)


class _Player:
    def __init__(self, trace: Trace, job: Job) -> None:
        self.trace, self.job = trace, job
        self.mode, self.overhead_h, self.done_h = IDLE, 0.0, 0.0
        self.result = ReplayResult(None, 0.0, job.work_h + job.restart_h, 0, 0, 0.0, 0.0, ())

    def run(self, policy: RefereePolicy, begin: int) -> ReplayResult:
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
        self.result = replace(result, stretches=_extended(result.stretches, self._where(), now_h, now_h + hours))

    def _where(self) -> str:
        return {IDLE: "waiting", ON_DEMAND: "on demand"}.get(self.mode) or self.trace.zones[self.mode]


def _extended(stretches: tuple[Span, ...], where: str, from_h: float, to_h: float) -> tuple[Span, ...]:
    if stretches and stretches[-1].where == where:
        return (*stretches[:-1], replace(stretches[-1], to_h=to_h))
    return (*stretches, Span(where, from_h, to_h))


def _check(trace: Trace, job: Job) -> None:
    if job.deadline_h < job.work_h + job.restart_h:
        raise UserError(
            f"{job.work_h:g} h of work plus {job.restart_h:g} h of start-up cannot finish in {job.deadline_h:g} h",
            f"give --deadline {math.ceil(100 * (job.work_h + job.restart_h)) / 100:g}h or more",
        )
    if job.start_h + job.deadline_h > trace.hours:
        raise UserError(
            f"the trace has {trace.hours:.0f} h, but the job needs it from {job.start_h:g} to "
            f"{job.start_h + job.deadline_h:g} h",
            _fitting_options(trace, job),
        )


def _fitting_options(trace: Trace, job: Job) -> str:
    """Options that would fit into the trace."""
    latest_h, least_h = math.floor(trace.hours - job.deadline_h), job.work_h + job.restart_h
    longest_h = math.floor(10 * (trace.hours - job.start_h)) / 10
    ways = [f"--start {latest_h} or less"] if latest_h >= 0 else []
    ways += [f"--deadline {longest_h:g}h or less"] if longest_h >= least_h else []
    return f"give {' or '.join(ways)}" if ways else "give a longer trace, or fewer --hours and a shorter --deadline"
