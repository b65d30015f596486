"""How our tables look."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.table import Table


def counted(count: int, noun: str) -> str:
    """`1 start`, `2 starts`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class PlainTable(Table):
    """A table without lines. What doesn't fit goes on in the next line: rich's default cuts it, figures too."""

    def add_column(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("overflow", "fold")
        super().add_column(*args, **kwargs)

    def keep_whole(self, columns: Collection[str]) -> None:
        """Wrap no cell of these columns, named by their headers, however narrow the others become."""
        for column in self.columns:
            if str(column.header) in columns:
                column.min_width = max(len(str(cell)) for cell in (column.header, *column._cells))


def rounded(value: float, digits: int) -> str:
    """At most seven characters: `154.61`, `1,545.6`, `154,612`, `1.55M`. `digits` are those of a number below 1000."""
    if value >= 999_999.5:
        return f"{value / 1e6:,.2f}M"
    return f"{value:,.{digits if value < 1000 else max(0, digits - 1) if value < 10_000 else 0}f}"


def plain_table(title: str | None = None, *, header: bool = True) -> PlainTable:
    """A table without lines, as all of ours are."""
    return PlainTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=header)
