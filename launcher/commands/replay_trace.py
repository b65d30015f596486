"""`notus-launch simulate`: replay the policy over a recorded trace, tick by tick, and show what it did.

The model is the spot referee's: on-demand machines are always available and never preempted, a spot machine is lost
when its zone becomes unavailable, a new machine costs a restart without progress, and finished work is never lost.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from checkpoints.util.command_line import console
from launcher.console import counted
from launcher.replay.player import play
from launcher.replay.plot import check_picture, draw_replay
from launcher.replay.replayed import Job, ReplayResult
from launcher.replay.trace import Trace, read_traces


def simulate(paths: list[Path], job: Job, output: str, plot: Path | None = None) -> int:
    """Print (and plot, to a PNG or SVG) what the policy does. Returns 0 if the deadline is met, else 3."""
    if plot is not None:
        check_picture(plot)
    trace = read_traces(paths)
    result = play(trace, job)
    if plot is not None:
        draw_replay(plot, trace, job, result)
        sys.stderr.write(f"notus-launch: plotted to {plot}\n")
    if output == "json":
        sys.stdout.write(json.dumps({"job": asdict(job), "zones": trace.zones, **asdict(result)}, indent=2) + "\n")
    else:
        _draw(console(), trace, job, result)
    return 0 if result.finish_h is not None and result.finish_h <= job.deadline_h + 1e-6 else 3


def _draw(console: Console, trace: Trace, job: Job, result: ReplayResult) -> None:
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
        table.add_row(f"{name[:18]} is up", "".join("░" if state else " " for state in up))
    for where in (*trace.zones, "on demand", "waiting"):
        inside = [s for s in result.stretches if s.where == where]
        hours = [column * job.deadline_h / width for column in range(width)]
        line = "".join("█" if any(s.from_h <= h < s.to_h for s in inside) else " " for h in hours)
        if inside:
            table.add_row(f"{where[:20]}", line)
    table.add_row("", f"0 h{f'{job.deadline_h:g} h'.rjust(width - 3)}")
    console.print(table)
    end = "not finished at the deadline" if result.finish_h is None else f"finished after {result.finish_h:.1f} h"
    console.print(
        f"{end} (deadline {job.deadline_h:g} h): {result.spot_h:.1f} h on spot, {result.on_demand_h:.1f} h on demand, "
        f"{counted(result.preemptions, 'preemption')}, {counted(result.starts, 'start')}",
        soft_wrap=True,
    )
    console.print(f"cost: {result.cost:.2f} on-demand hours, {result.saved} on demand alone", soft_wrap=True)


def _tick_at(job: Job, trace: Trace, column: int, width: int) -> int:
    return int(column * job.deadline_h / width / trace.tick_h)
