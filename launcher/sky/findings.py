"""What `notus-launch doctor` reports: one line for each thing that a cloud launch needs."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "missing", "note"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    fix: str = ""
