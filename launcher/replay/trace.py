"""Recorded availability of spot machines: read the files, and fit the rates of a market to them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import UserError
from launcher.policy.spot.market import Rates, Spells, pooled


@dataclass(frozen=True)
class Trace:
    """Availability tick by tick: `up[tick][zone]`. Ticks are `tick_h` hours."""

    tick_h: float
    zones: tuple[str, ...]
    up: tuple[tuple[bool, ...], ...]

    @property
    def hours(self) -> float:
        """Length in hours."""
        return len(self.up) * self.tick_h


def read_traces(paths: Sequence[Path]) -> Trace:
    """Read one market of several zones, one file each, in the format of the spot-traces repository.

    A zone counts as available if it has as many nodes as it ever had in the file. Raises `UserError`.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("one trace is given twice", "give each zone of the market once")
    gaps, columns = [], []
    for path in paths:
        gap, column = _read(path)
        gaps.append(gap)
        columns.append(column)
    if len(set(gaps)) > 1:
        raise UserError(
            f"the traces have different ticks: {', '.join(f'{gap:g} s' for gap in gaps)}",
            "give traces that were recorded together",
        )
    return Trace(gaps[0] / 3600, tuple(path.stem for path in paths), tuple(zip(*columns, strict=False)))


def _read(path: Path) -> tuple[float, list[bool]]:
    if path.exists() and not path.is_file():  # reading a device may never end
        raise UserError(f"{path} is not a file", "give the file of a recorded trace")
    try:
        data = json.loads(path.read_text())
        counts = [int(count) for count in data["data"]]
        gap = float(data["metadata"]["gap_seconds"])
        if not math.isfinite(gap):
            raise ValueError(f"gap_seconds is {gap}")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", "check the path of the trace") from error
    except (ValueError, OverflowError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a spot trace: {type(error).__name__}: {error}",
            'it needs {"metadata": {"gap_seconds": G}, "data": [nodes at each tick, ...]}',
        ) from error
    most = max(counts, default=0)
    if most < 1 or gap <= 0:
        raise UserError(f"{path} has no tick at which a machine was available", "check the trace")
    return gap, [count >= most for count in counts]


@dataclass(frozen=True)
class Fit:
    """Rates by age bin, and the number of ends that they are based on."""

    up_ends: Rates
    down_ends: Rates
    up_count: int
    down_count: int


def fit(traces: Iterable[Trace]) -> Fit:
    """Ends per hour at risk, pooled over zones as separate chains: the origin of `PRIOR_UP` and `PRIOR_DOWN`."""
    chains = []
    for trace in traces:
        for column in zip(*trace.up, strict=True):
            chains.append(Spells())
            for up in column:
                chains[-1].look(up, trace.tick_h)
    (up_ends, up_h), (down_ends, down_h) = pooled(chains, True), pooled(chains, False)
    return Fit(_per_hour(up_ends, up_h), _per_hour(down_ends, down_h), int(sum(up_ends)), int(sum(down_ends)))


def _per_hour(ends: Sequence[float], at_risk_h: Sequence[float]) -> Rates:
    return tuple(count / hours if hours else 0.0 for count, hours in zip(ends, at_risk_h, strict=True))
