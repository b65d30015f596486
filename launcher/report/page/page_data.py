"""The page's content, computed from the receipt, the diary and the metrics. Pure; the template only lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from statistics import fmean

from pydantic import Field

from checkpoints.run_log.event_kinds import Evaluated
from checkpoints.run_log.event_log import Event, of_kind
from launcher.frozen import Frozen
from launcher.report.goodput import Interruption, Part, goodput_parts, interruptions
from launcher.report.receipt import AttemptLine, MachineLine, Receipt
from launcher.report.results import KeptRows, Results

MAX_POINTS = 1500
"""Points per curve: more can't be distinguished on a screen. Neighbouring steps are averaged."""
SHOWN = {
    "Loss": ("loss",),
    "Reward accuracy": ("rewards/accuracies",),
    "Rewards": ("rewards/chosen", "rewards/rejected", "rewards/margins"),
    "Tokens per second": ("tokens_per_second",),
    "Gradient norm": ("grad_norm",),
    "Learning rate": ("learning_rate",),
}
"""Metrics in each chart over steps, by title."""
EVALUATED = {"Loss": "eval_loss", "Reward accuracy": "eval_rewards/accuracies"}
"""The evaluation metric added to a chart."""


class Bar(Frozen):
    """A span of time on the timeline, in hours since its beginning."""

    begin_h: float
    end_h: float
    label: str
    kind: str = Field(description="machine, startup, training, redone")


class Row(Frozen):
    """A row of the timeline: the attempts, or the machines of one place."""

    label: str
    bars: tuple[Bar, ...]


class Line(Frozen):
    """A curve of a chart; `None` = a gap."""

    label: str
    values: tuple[float | None, ...]
    points: bool = Field(default=False, description="single points, as of evaluations")


class Chart(Frozen):
    """A chart: curves over one axis."""

    title: str
    x_label: str
    x: tuple[float, ...]
    lines: tuple[Line, ...]
    marks: tuple[float, ...] = Field(default=(), description="interruptions, on the axis")


class Comparison(Frozen):
    """The cost of the run, or of an alternative."""

    name: str
    cost_usd: float
    basis: str = Field(description="how the figure is worked out")


class PageData(Frozen):
    """Everything on the page."""

    made_at: datetime
    receipt: Receipt
    results: Results
    started_at: datetime | None
    hours: float = Field(description="length of the timeline")
    timeline: tuple[Row, ...]
    parts: tuple[Part, ...]
    interruptions: tuple[Interruption, ...]
    charts: tuple[Chart, ...]
    comparisons: tuple[Comparison, ...]


def make_page(
    receipt: Receipt,
    results: Results,
    events: Sequence[Event],
    rows: KeptRows,
    made_at: datetime,
    *,
    on_demand_usd_per_hour: float | None = None,
) -> PageData:
    """Compute the page. `on_demand_usd_per_hour`: price of the cheapest node like the run's, for comparison."""
    begins = [attempt.started_at for attempt in receipt.attempts] + [machine.since for machine in receipt.machines]
    ends = [attempt.ended_at for attempt in receipt.attempts] + [machine.until for machine in receipt.machines]
    started_at = min(begins, default=None)
    hours = (max(ends) - started_at).total_seconds() / 3600 if started_at else 0.0
    cost = cost_chart(receipt, started_at, on_demand_usd_per_hour) if started_at else None
    return PageData(
        made_at=made_at,
        receipt=receipt,
        results=results,
        started_at=started_at,
        hours=hours,
        timeline=tuple(timeline(receipt, started_at)) if started_at else (),
        parts=tuple(goodput_parts(receipt)),
        interruptions=tuple(interruptions(receipt)),
        charts=(*([cost] if cost else []), *step_charts(receipt, events, rows)),
        comparisons=tuple(comparisons(receipt, on_demand_usd_per_hour)),
    )


def timeline(receipt: Receipt, started_at: datetime) -> list[Row]:
    """Return the attempts, and below them the machines: a row per place, in the order of their first machines."""

    def hour(moment: datetime) -> float:
        return (moment - started_at).total_seconds() / 3600

    bars = [bar for attempt in receipt.attempts for bar in _stretches(attempt, hour(attempt.started_at))]
    rows = {"attempts": bars} if bars else {}
    for machine in receipt.machines:
        price = f"${machine.price_usd_per_hour:.2f}/h, ${machine.cost_usd:,.2f}"
        label = f"{machine.place}: {price}, {machine.ended}"
        bar = Bar(begin_h=hour(machine.since), end_h=hour(machine.until), label=label, kind="machine")
        rows.setdefault(f"{machine.where} {'spot' if machine.spot else 'on demand'}", []).append(bar)
    return [Row(label=label, bars=tuple(bars)) for label, bars in rows.items()]


def _stretches(attempt: AttemptLine, begin_h: float) -> list[Bar]:
    """The bars of an attempt: its start-up, the steps that were kept, and those that were lost."""
    end_h = begin_h + attempt.seconds / 3600
    trained_h = min(end_h, begin_h + attempt.startup_s / 3600)
    steps = max(1, attempt.to_step - attempt.from_step)
    kept_h = end_h - (end_h - trained_h) * attempt.redone_steps / steps
    name = f"attempt {attempt.number}"
    stretches = (
        (begin_h, trained_h, "startup", f"{name}: start-up"),
        (trained_h, kept_h, "training", f"{name}: from step {attempt.from_step}, {attempt.ended}"),
        (kept_h, end_h, "redone", f"{name}: {attempt.redone_steps} steps were done again"),
    )
    return [
        Bar(begin_h=first, end_h=last, label=label, kind=kind) for first, last, kind, label in stretches if last > first
    ]


def cost_chart(receipt: Receipt, started_at: datetime, on_demand_usd_per_hour: float | None) -> Chart | None:
    """Return the cost over time, with an uninterrupted on-demand machine for comparison; None if no cloud was used."""
    if not receipt.machines:
        return None
    needed_h = uninterrupted_h(receipt)
    moments = {moment for machine in receipt.machines for moment in (machine.since, machine.until)}
    needed_until = started_at + timedelta(hours=needed_h)  # where the line of a machine on demand bends
    x = sorted(moments | ({needed_until} if on_demand_usd_per_hour and needed_until < max(moments) else set()))
    hours = tuple((moment - started_at).total_seconds() / 3600 for moment in x)
    spent = tuple(sum(_paid_until(machine, moment) for machine in receipt.machines) for moment in x)
    lines = [Line(label="this run", values=spent)]
    if on_demand_usd_per_hour is not None:
        beside = tuple(on_demand_usd_per_hour * min(hour, needed_h) for hour in hours)
        lines.append(Line(label="on demand", values=beside))
    ended = tuple((attempt.ended_at - started_at).total_seconds() / 3600 for attempt in receipt.attempts[:-1])
    return Chart(title="Cost ($)", x_label="hours", x=hours, lines=tuple(lines), marks=ended)


def _paid_until(machine: MachineLine, moment: datetime) -> float:
    whole_s = (machine.until - machine.since).total_seconds()
    passed_s = min(max(0.0, (moment - machine.since).total_seconds()), whole_s)
    return machine.cost_usd * passed_s / whole_s if whole_s else 0.0


def uninterrupted_h(receipt: Receipt) -> float:
    """Hours that the run would have taken without interruptions: one start-up, no step twice."""
    startup_s = receipt.attempts[0].startup_s if receipt.attempts else 0.0
    return (receipt.useful_s + receipt.saving_s + receipt.other_s + startup_s) / 3600


def comparisons(receipt: Receipt, on_demand_usd_per_hour: float | None) -> list[Comparison]:
    """Return the cost of the run and of alternatives, at the prices during the run."""
    if not receipt.machines:
        return []
    hours = uninterrupted_h(receipt)
    cheapest = min(receipt.machines, key=lambda machine: machine.price_usd_per_hour)
    lines = [Comparison(name="this run", cost_usd=receipt.cost_usd, basis="all its machines, without storage")]
    if on_demand_usd_per_hour is not None:
        lines.append(
            Comparison(
                name="on demand",
                cost_usd=hours * on_demand_usd_per_hour,
                basis=f"{hours:.2f} h without an interruption at ${on_demand_usd_per_hour:.2f}/h",
            )
        )
    lines.append(
        Comparison(
            name="the bound",
            cost_usd=hours * cheapest.price_usd_per_hour,
            basis=f"{hours:.2f} h at its cheapest machine's ${cheapest.price_usd_per_hour:.2f}/h, never interrupted",
        )
    )
    return lines


def step_charts(receipt: Receipt, events: Sequence[Event], rows: KeptRows) -> list[Chart]:
    """Return the curves over steps: one line per metric. A step that was redone counts as its last attempt did it."""
    marks = tuple(float(attempt.to_step) for attempt in receipt.attempts[:-1] if attempt.to_step > attempt.from_step)
    evaluations = {payload.step: payload.metrics for _, payload in of_kind(events, Evaluated)}
    charts = []
    for title, names in SHOWN.items():
        lines = {name: {step: row[name] for step, row in rows.items() if name in row} for name in names}
        lines = {_label(name): values for name, values in lines.items() if values}
        if not lines:
            continue
        points = {
            step: float(values[EVALUATED[title]])
            for step, values in evaluations.items()
            if title in EVALUATED and isinstance(values.get(EVALUATED[title]), int | float)
        }
        charts.append(_chart(title, lines, points, marks))
    return charts


def _label(name: str) -> str:
    return name.removeprefix("rewards/").replace("_", " ")


def _chart(title: str, lines: dict[str, dict[int, float]], points: dict[int, float], marks: tuple[float, ...]) -> Chart:
    steps = sorted({step for values in lines.values() for step in values})
    width = max(1, -(-len(steps) // MAX_POINTS))
    bins = {step: steps[index // width * width] for index, step in enumerate(steps)}
    thinned = {label: _averaged(values, bins) for label, values in lines.items()}
    x = sorted({*bins.values(), *points})
    made = [Line(label=label, values=tuple(values.get(step) for step in x)) for label, values in thinned.items()]
    if points:
        made.append(Line(label="evaluation", values=tuple(points.get(step) for step in x), points=True))
    return Chart(title=title, x_label="step", x=tuple(map(float, x)), lines=tuple(made), marks=marks)


def _averaged(values: dict[int, float], bins: dict[int, int]) -> dict[int, float]:
    """Means of the steps of each bin, by the bin's first step."""
    grouped = groupby(sorted(values), key=lambda step: bins[step])
    return {first: fmean(values[step] for step in steps) for first, steps in grouped}
