"""What `notus-launch doctor` and `notus-launch check` report: one line for each thing that was looked at."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "missing", "wrong", "warning", "note", "unknown"]
"""`missing` and `wrong` are errors; `unknown`: it could not be asked."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    fix: str = ""
