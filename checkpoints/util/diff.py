"""The differences between two JSON-like values, by path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

LONGEST = 60
"""How many characters of a value are shown."""


class Difference(NamedTuple):
    """One value that has changed."""

    path: str
    """Keys joined by dots."""
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path} was {_short(self.old)}, is {_short(self.new)}"


def differences(old: Any, new: Any, path: str = "") -> Iterator[Difference]:
    """Yield the innermost values that differ, ordered by path; a key that only one side has counts as None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield Difference(path, old, new)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
