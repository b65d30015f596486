"""What the user's own runs have met, kept in a small file at home: the dry run reads it without asking a bucket.

One entry a run, replaced each time that the run is looked at, so nothing is counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.events import Event
from launcher.hazard import Hazard
from launcher.options import experience_path
from launcher.policy.experience import Counts, Kind, counts_of, total
from trainer.scratch import replace_file

MIN_MACHINE_HOURS = 1.0
"""On spot, before a table counts as measured."""


class _Met(BaseModel):
    model_config = ConfigDict(frozen=True)

    cloud: str
    gpus: str
    counts: Counts


class _Book(BaseModel):
    model_config = ConfigDict(frozen=True)

    runs: dict[str, tuple[_Met, ...]] = {}


def remember(run_url: str, events: Sequence[Event], now: datetime) -> None:
    """Note what a run has met. A file that can't be written is no reason to fail: it only makes plans better."""
    met = tuple(_Met(cloud=cloud, gpus=gpus, counts=counts) for (cloud, gpus), counts in counts_of(events, now).items())
    if not met:
        return
    book = _read()
    with contextlib.suppress(OSError):
        _write(_Book(runs={**book.runs, run_url: met}))


def learned() -> dict[Kind, Hazard]:
    """Hazards that the user's runs have updated, by cloud and GPUs."""
    runs = [{(met.cloud, met.gpus): met.counts for met in run} for run in _read().runs.values()]
    return {
        kind: Hazard(chain=counts.chain(places=2), source=_source(kind, counts, len(runs)), measured=True)
        for kind, counts in total(runs).items()
        if counts.machine_hours >= MIN_MACHINE_HOURS
    }


def _source(kind: Kind, counts: Counts, runs: int) -> str:
    cloud, gpus = kind
    return (
        f"spot {gpus} in {cloud}: the shipped table updated by {runs} runs of yours, {counts.preemptions} preemptions "
        f"in {counts.machine_hours:.0f} machine hours"
    )


def _read() -> _Book:
    try:
        return _Book.model_validate_json(experience_path().read_bytes())
    except (OSError, ValidationError):
        return _Book()


def _write(book: _Book) -> None:
    path = experience_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, book.model_dump_json(indent=1).encode())
