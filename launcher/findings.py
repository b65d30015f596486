"""The findings that `notus-launch doctor` and `notus-launch check` report, one line for each check."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "missing", "wrong", "warning", "note", "unknown"]
"""`missing` and `wrong` are errors; `unknown` means that it could not be checked."""


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    state: State
    detail: str
    fix: str = ""
