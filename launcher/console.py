"""Lines for people, on stderr."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line of what the launcher is doing."""
    sys.stderr.write(f"notus-launch: {text}\n")
