"""The result of a drill, including what it doesn't cover, as data and for a terminal."""

from __future__ import annotations

from pydantic import Field
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launcher.frozen import Frozen
from launcher.report.receipt import Receipt


class Drill(Frozen):
    """The figures of a drill."""

    recipe: str
    passed: bool
    run: str
    bucket: str
    kept: bool = Field(description="are its two runs still in the bucket?")
    killed_at_steps: tuple[int, ...]
    differences: tuple[str, ...]
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]
    receipt: Receipt


def drill_panel(drill: Drill) -> RenderableType:
    """The result of a drill, including what it doesn't cover, as a panel."""
    verdict = "passed: bit for bit the same" if drill.passed else f"FAILED: {', '.join(drill.differences[:3])}"
    lines = Table.grid(padding=(0, 1))
    lines.add_column()
    lines.add_column()
    for title, points in (("shown", drill.shown), ("not shown", drill.not_shown)):
        lines.add_row("", Text(title, style="bold"))
        for point in points:
            lines.add_row("-", point)
    where = f"its runs are in {drill.bucket}: {drill.run}, {drill.run}-uninterrupted" if drill.kept else ""
    head = Text(verdict, style="bold green" if drill.passed else "bold red")
    return Panel(Group(head, lines, *([Text(where)] if where else [])), title=f"drill of {drill.recipe}", expand=False)
