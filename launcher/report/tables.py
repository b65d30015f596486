"""The style of our tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.table import Table


class PlainTable(Table):
    """A table without lines. Long cells wrap: rich's default truncates them, including figures."""

    def add_column(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("overflow", "fold")
        super().add_column(*args, **kwargs)

    def keep_whole(self, columns: Collection[str]) -> None:
        """Never wrap these columns, given by header, however narrow the others become."""
        for column in self.columns:
            if str(column.header) in columns:
                column.min_width = max(len(str(cell)) for cell in (column.header, *column._cells))


def plain_table(title: str | None = None, *, header: bool = True) -> PlainTable:
    """A table without lines, the style of all our tables."""
    return PlainTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=header)
