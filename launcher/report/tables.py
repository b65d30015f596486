"""How our tables look."""

from __future__ import annotations

from rich.table import Table


def counted(count: int, noun: str) -> str:
    """`1 start`, `2 starts`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def plain_table(title: str | None = None, *, header: bool = True) -> Table:
    """A table without lines, as all of ours are."""
    return Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=header)
