"""Messages on stderr, and formatting of counts and figures."""

from __future__ import annotations

import sys


def echo(text: str) -> None:
    """Print one line about what the launcher is doing."""
    sys.stderr.write(f"notus-launch: {text}\n")


def counted(count: int, noun: str) -> str:
    """`1 start`, `2 starts`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def rounded(value: float, digits: int) -> str:
    """Format in at most seven characters: `154.61`, `1,545.6`, `154,612`, `1.55M`. `digits`: decimals below 1000."""
    if value >= 999_999.5:
        return f"{value / 1e6:,.2f}M"
    return f"{value:,.{digits if value < 1000 else max(0, digits - 1) if value < 10_000 else 0}f}"
