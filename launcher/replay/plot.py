"""Plot a replay: the availability of each zone, where the run was, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.errors import UserError
from launcher.console import counted

if TYPE_CHECKING:
    from launcher.replay.replayed import Job, ReplayResult
    from launcher.replay.trace import Trace

SUFFIXES = (".png", ".svg")
FREE, SPOT, ON_DEMAND, WAITING = "#c9d8e6", "#1f6fb4", "#d1602d", "#b8b8b8"


def check_picture(path: Path) -> None:
    """Check that the path can be plotted to; raises `UserError`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is not an image file", f"give a name that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder", "give the name of an image file in it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.absolute().parent}", "create it, or choose another one")


def draw_replay(path: Path, trace: Trace, job: Job, result: ReplayResult) -> None:
    """Write the plot, in the format of the suffix."""
    check_picture(path)
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "notus"  # the same replay makes the same file
    from matplotlib import pyplot

    rows = [*trace.zones, "on demand", "waiting"]
    figure, (lanes, curve) = pyplot.subplots(
        2, 1, figsize=(9, 1.6 + 0.35 * len(rows) + 1.8), sharex=True, height_ratios=[len(rows), 4], layout="constrained"
    )
    _draw_lanes(lanes, trace, job, result, rows)
    _draw_curves(curve, job, result)
    end = "not finished at the deadline" if result.finish_h is None else f"finished after {result.finish_h:.1f} h"
    preempted = counted(result.preemptions, "preemption")
    figure.suptitle(f"{end}, {preempted}: {result.cost:.2f} on-demand hours, {result.saved} on demand")
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}", "choose another path") from error
    finally:
        pyplot.close(figure)


def _draw_lanes(axes: Any, trace: Trace, job: Job, result: ReplayResult, rows: Sequence[str]) -> None:
    for number in range(len(trace.zones)):
        axes.broken_barh(_available(trace, job, number), (number - 0.4, 0.8), color=FREE)
    colors = {**dict.fromkeys(trace.zones, SPOT), "on demand": ON_DEMAND, "waiting": WAITING}
    for row, name in enumerate(rows):
        spans = [(s.from_h, s.to_h - s.from_h) for s in result.stretches if s.where == name]
        axes.broken_barh(spans, (row - 0.22, 0.44), color=colors[name])
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.axvline(job.deadline_h, color="black", linestyle="--", linewidth=1)
    axes.set_title("light: the zone had a machine; dark: the run was there", fontsize="small", loc="left")


def _draw_curves(axes: Any, job: Job, result: ReplayResult) -> None:
    """Cost over time, next to the cost of on demand from the beginning."""
    times, costs = [0.0], [0.0]
    price = {"on demand": 1.0, "waiting": 0.0}
    for stretch in result.stretches:
        times.append(stretch.to_h)
        costs.append(costs[-1] + (stretch.to_h - stretch.from_h) * price.get(stretch.where, job.spot_price))
    axes.plot(times, costs, color=SPOT, label="this policy")
    whole = result.on_demand_cost
    axes.plot([0, whole], [0, whole], color=ON_DEMAND, linewidth=1, label="on demand alone")
    axes.axvline(job.deadline_h, color="black", linestyle="--", linewidth=1, label="deadline")
    axes.set_xlabel("hours since the start")
    axes.set_ylabel("cost, on-demand hours")
    axes.set_xlim(0, job.deadline_h * 1.02)
    axes.legend(fontsize="small")


def _available(trace: Trace, job: Job, zone: int) -> list[tuple[float, float]]:
    """(start, length) of the spans in which a zone had a machine, in hours since the start of the job."""
    begin = round(job.start_h / trace.tick_h)
    ticks = trace.up[begin : begin + round(job.deadline_h / trace.tick_h)]
    spans, now = [], 0.0
    for up, group in groupby(tick[zone] for tick in ticks):
        length = len(list(group)) * trace.tick_h
        if up:
            spans.append((now, length))
        now += length
    return spans
