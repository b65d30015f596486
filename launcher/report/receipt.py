"""The receipt: what a run did, lost and cost. A pure function of the diary and the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from pydantic import Field

from checkpoints.run_log.event_kinds import (
    AtStep,
    AttemptEnded,
    AttemptStarted,
    Compared,
    DamageFound,
    Failed,
    Finished,
    Notice,
    Planned,
    Preempted,
    Resumed,
    RunEnd,
    Saved,
    Stopped,
    Training,
)
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.machine_history import told_by
from checkpoints.run_log.metrics import StepMetrics
from launcher.catalog.offers import Offer
from launcher.frozen import Frozen
from launcher.policy.run_history import machines
from launcher.report.event_lines import data_line


class AttemptLine(Frozen):
    """One attempt."""

    number: int
    started_at: datetime
    ended_at: datetime
    ended: str = Field(description="finished, preempted, failed, user_error, running, killed, ...")
    from_step: int = Field(description="the step it resumed from, 0 = the start")
    not_exact: tuple[str, ...] = Field(default=(), description="what differs from the attempt it resumed from")
    trained: bool = Field(description="did it do a first step?")
    to_step: int = Field(description="the last step it did")
    redone_steps: int = Field(description="how many of its steps a later attempt had to redo")
    startup_s: float = Field(description="from its start to the end of its first step")

    @property
    def seconds(self) -> float:
        return (self.ended_at - self.started_at).total_seconds()


class CostLine(Frozen):
    """What the machine hours of this run would cost on a real offer."""

    offer: str
    price_usd_per_hour: float
    cost_usd: float


class MachineLine(Frozen):
    """A rented machine."""

    place: str
    where: str = Field(description="the cloud and the zone, or region")
    gpus: str
    spot: bool
    since: datetime = Field(description="when it was requested in its zone")
    until: datetime = Field(description="its end, or the receipt's time")
    price_usd_per_hour: float
    hours: float
    cost_usd: float
    ended: str = Field(description="preempted, moved, finished, ..., or running")


class Receipt(Frozen):
    """The figures of a run."""

    run: str
    state: Literal["running", "finished", "stopped", "failed", "empty"]
    failure: str = Field(default="", description="why it has given up")
    attempts: tuple[AttemptLine, ...]
    preemptions: int
    failures: int
    steps: int = Field(description="optimizer steps done")
    steps_redone: int
    wall_s: float = Field(description="from the first attempt's start to the last one's end")
    useful_s: float = Field(description="spent on steps that were kept")
    saving_s: float = Field(description="training was paused for saves")
    saves: int
    startup_s: float
    redone_s: float = Field(description="spent on steps that were lost")
    waiting_s: float = Field(description="between attempts")
    other_s: float = Field(description="evaluation, export, shutting down")
    lost_to_preemptions_s: float = Field(
        description="redone steps, waiting, and the start-ups after the first; not after a stop"
    )
    goodput: float = Field(description="useful_s / wall_s")
    machine_hours: float
    machines: tuple[MachineLine, ...] = Field(default=(), description="empty if no cloud was used")
    cost_usd: float = Field(default=0.0, description="of all machines; without storage and egress")
    costs: tuple[CostLine, ...] = Field(default=(), description="without machines: what the hours would cost")
    damaged_checkpoints: int = 0
    data: str = Field(default="", description="which rows of the data set aren't trained, and why; empty = all are")
    bit_exact: bool | None = Field(default=None, description="None = not compared")
    compared: dict[str, Any] = Field(default_factory=dict)


def make_receipt(
    run: str,
    events: Sequence[Event],
    metrics: Sequence[StepMetrics],
    offers: Sequence[Offer],
    now: datetime,
    *,
    abandoned: bool = False,
) -> Receipt:
    """Compute the receipt. `offers` are used to price the machine hours; `now` ends a running attempt.

    `abandoned`: the run has no launcher any more, so an attempt without a recorded end was killed; `now` is then the
    last sign of life.
    """
    attempts = _attempts(events, now, "killed" if abandoned else "running")
    times = _times(attempts, metrics)
    compared = [comparison for _, comparison in of_kind(events, Compared)]
    paid = _machines(events, now)
    running_h = sum(attempt.seconds for attempt in attempts) / 3600
    return Receipt(
        run=run,
        state=_state(events, attempts),
        failure=_failure(events),
        attempts=tuple(attempts),
        preemptions=sum(attempt.ended == "preempted" for attempt in attempts),
        failures=sum(attempt.ended in ("failed", "user_error", "fenced") for attempt in attempts),
        steps=max((attempt.to_step - attempt.redone_steps for attempt in attempts), default=0),
        steps_redone=sum(attempt.redone_steps for attempt in attempts),
        saves=len(of_kind(events, Saved)),
        **times._asdict(),
        goodput=times.useful_s / times.wall_s if times.wall_s else 0.0,
        machine_hours=sum(machine.hours for machine in paid) if paid else running_h,
        machines=paid,
        cost_usd=sum(machine.cost_usd for machine in paid),
        costs=_costs(() if paid else offers, running_h),
        damaged_checkpoints=len(of_kind(events, DamageFound)),
        data=data_line(events) or "",
        bit_exact=compared[-1].equal if compared else None,
        compared=compared[-1].model_dump(mode="json") if compared else {},
    )


class _Times(NamedTuple):
    """The receipt's fields of the same names."""

    wall_s: float
    useful_s: float
    saving_s: float
    startup_s: float
    redone_s: float
    waiting_s: float
    other_s: float
    lost_to_preemptions_s: float


def _times(attempts: Sequence[AttemptLine], metrics: Sequence[StepMetrics]) -> _Times:
    """Where the wall time went. The parts up to `other_s` add up to it."""
    kept = _kept_seconds(metrics, attempts)
    wall_s = (attempts[-1].ended_at - attempts[0].started_at).total_seconds() if attempts else 0.0
    # The first step of an attempt counts as start-up: it compiles, allocates and waits for the slowest rank.
    useful_s, startup_s = sum(kept.values()), sum(attempt.startup_s for attempt in attempts)
    saving_s = sum(float(item.values.get("stalled_s", 0.0)) for item in metrics if item.rank == 0)
    redone_s = _redone_seconds(attempts, kept)
    waiting_s = max(0.0, wall_s - sum(attempt.seconds for attempt in attempts))
    # A pause that the user made, and the start-up after it, are no loss to a preemption.
    recoveries = [(before, after) for before, after in pairwise(attempts) if before.ended != "stopped"]
    between_s = sum((after.started_at - before.ended_at).total_seconds() for before, after in recoveries)
    return _Times(
        wall_s=wall_s,
        useful_s=useful_s,
        saving_s=saving_s,
        startup_s=startup_s,
        redone_s=redone_s,
        waiting_s=waiting_s,
        other_s=max(0.0, wall_s - useful_s - saving_s - startup_s - redone_s - waiting_s),
        lost_to_preemptions_s=redone_s + max(0.0, between_s) + sum(after.startup_s for _, after in recoveries),
    )


def _costs(offers: Sequence[Offer], hours: float) -> tuple[CostLine, ...]:
    return tuple(
        CostLine(
            offer=f"{offer.cloud} {'spot' if offer.spot else 'on demand'} {offer.gpus}",
            price_usd_per_hour=offer.price_usd_per_hour,
            cost_usd=hours * offer.price_usd_per_hour,
        )
        for offer in offers
    )


def _machines(events: Sequence[Event], now: datetime) -> tuple[MachineLine, ...]:
    lines = []
    for spell in machines(events):
        lines.append(
            MachineLine(
                place=str(spell.place),
                where=f"{spell.place.cloud}/{spell.place.zone or spell.place.region}",
                gpus=spell.place.gpus,
                spot=spell.place.spot,
                since=spell.since,
                until=spell.until or now,
                price_usd_per_hour=spell.usd_per_hour,
                hours=spell.hours(now),
                cost_usd=spell.usd(now),
                ended=spell.job_status or spell.ended or "running",
            )
        )
    return tuple(lines)


def _attempts(events: Sequence[Event], now: datetime, without_end: str) -> list[AttemptLine]:
    numbers = sorted({event.attempt for event, _ in of_kind(events, AttemptStarted)})
    lines: list[AttemptLine] = []
    for number in numbers:
        mine = [event for event in events if event.attempt == number]
        # Without an end event it is still running, or its machine died before it could write one.
        unended = (now, without_end) if number == numbers[-1] else (max(event.time for event in mine), "preempted")
        lines.append(_attempt(mine, number, _end(mine) or unended))
    for index, line in enumerate(lines):
        # An attempt that died before its first step does not show what it would have resumed from.
        successor = next((later for later in lines[index + 1 :] if later.trained), None)
        if successor is not None:
            redone = max(0, line.to_step - max(successor.from_step, line.from_step))
            lines[index] = line.model_copy(update={"redone_steps": redone})
    return lines


def _attempt(mine: Sequence[Event], number: int, end: tuple[datetime, str]) -> AttemptLine:
    """One attempt, from its own events and how it ended."""
    started_at = of_kind(mine, AttemptStarted)[-1][0].time
    ended_at, ended = end
    resumed = [payload for _, payload in of_kind(mine, Resumed)][-1:]
    trained = [event.time for event, _ in of_kind(mine, Training)][-1:]
    from_step = resumed[0].step if resumed else 0
    return AttemptLine(
        number=number,
        started_at=started_at,
        ended_at=ended_at,
        ended=ended,
        from_step=from_step,
        not_exact=resumed[0].not_exact if resumed else (),
        trained=bool(trained),
        to_step=max([from_step, *(payload.step for _, payload in of_kind(mine, AtStep))]),
        redone_steps=0,
        startup_s=((trained[0] if trained else ended_at) - started_at).total_seconds(),
    )


def _end(mine: Sequence[Event]) -> tuple[datetime, str] | None:
    """When and how an attempt ended, in the receipt's terms; None if no event shows it."""
    if killed := of_kind(mine, Preempted):
        return killed[-1][0].time, "preempted"
    stops = of_kind(mine, Stopped)
    ends = of_kind(mine, AttemptEnded)
    if not ends:
        return (stops[-1][0].time, "stopped") if stops else None
    event, end = ends[-1]
    if end.outcome == "preempted" and stops:  # it ended before the notice of the stop could be written
        return event.time, "stopped"
    if end.outcome != "preempted":
        return event.time, end.outcome
    return event.time, told_by([notice.source for _, notice in of_kind(mine, Notice)])


def _kept_seconds(metrics: Sequence[StepMetrics], attempts: Sequence[AttemptLine]) -> dict[int, float]:
    """Seconds of each kept step on rank 0, without each attempt's first."""
    first = {attempt.number: attempt.from_step + 1 for attempt in attempts}
    kept_to = {attempt.number: attempt.to_step - attempt.redone_steps for attempt in attempts}
    return {
        item.step: float(item.values["seconds"])
        for item in metrics
        if item.rank == 0 and first.get(item.attempt, 0) < item.step <= kept_to.get(item.attempt, 0)
    }


def _redone_seconds(attempts: Sequence[AttemptLine], kept: dict[int, float]) -> float:
    """Time of the lost steps, at the mean pace of the kept ones: their own times may be lost with the machine."""
    pace = sum(kept.values()) / len(kept) if kept else 0.0
    return pace * sum(attempt.redone_steps for attempt in attempts)


def _state(
    events: Sequence[Event], attempts: Sequence[AttemptLine]
) -> Literal["running", "finished", "stopped", "failed", "empty"]:
    if not attempts:
        return "failed" if _failure(events) else "empty"
    turns = [event.payload for event in events if isinstance(event.payload, RunEnd | AttemptStarted)]
    match turns[-1]:
        case Finished():
            return "finished"
        case Failed():
            return "failed"
        case Stopped():
            return "stopped"
    return "running" if attempts[-1].ended in ("running", "preempted") else "stopped"


def _failure(events: Sequence[Event]) -> str:
    """The final error, if no other attempt can fix it; else ''."""
    turning = RunEnd | Planned | AttemptStarted | AttemptEnded
    turns = [event.payload for event in events if isinstance(event.payload, turning)]
    match turns[-1:]:
        case [Failed(message=message) | AttemptEnded(outcome="user_error", message=message)]:
            return message or "no reason given"
    return ""
