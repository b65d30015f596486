"""How our tables look."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.table import Table


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


def plain_table(title: str | None = None, *, header: bool = True) -> PlainTable:
    """A table without lines, as all of ours are."""
    return PlainTable(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=header)
