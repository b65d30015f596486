"""The GPU nodes and markets that a request can name. The clouds are in `trainer.config.clouds`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from launcher.errors import RequestError
from trainer.config.gpu_types import GPU_TYPES

Market = Literal["auto", "spot", "on-demand"]


LOCAL = "local"


@dataclass(frozen=True)
class Gpus:
    """A number of GPUs of one kind, all in one node."""

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse_gpus(text: str) -> Gpus:
    """Parse `A100:8`; raises `RequestError`. Whether such a GPU is offered is checked against the price lists later."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?::([1-9][0-9]{0,2}))?", text)
    if not match:
        raise RequestError(f"{text[:80]!r} is not a GPU request", "write KIND:COUNT, for example A100:8")
    names = {name.lower(): name for name in GPU_TYPES}
    return Gpus(names.get(match[1].lower(), match[1]), int(match[2] or 8))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean 'A100'?`, or '' if no known name is similar."""
    lowered = {name.lower(): name for name in known}
    close = difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.4)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""
