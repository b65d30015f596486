"""What the user's own runs have met, kept in a small file at home: the dry run reads it without asking a bucket.

One entry a run, replaced each time that the run is looked at, so nothing is counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from checkpoints.events import Event
from launcher.hazard import Hazard, in_words
from launcher.options import experience_path
from launcher.policy.experience import Counts, Kind, counts_of, total
from launcher.policy.market import Met
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


@dataclass(frozen=True)
class Experience:
    """With one market."""

    kind: Kind
    counts: Counts
    runs: int
    """That saw it."""

    def hazard(self, zones: int) -> Hazard:
        """What it makes of the shipped table for so many zones."""
        cloud, gpus = self.kind
        found = self.counts.world(zones)
        return Hazard(
            world=found,
            chain=self.counts.chain(zones),
            source=f"spot {gpus} in {cloud}: the shipped table updated by {self.runs} runs of yours, "
            f"{self.counts.preemptions} preemptions in {self.counts.machine_hours:.0f} machine hours: "
            f"{in_words(found, zones)}",
            measured=True,
        )

    @property
    def met(self) -> Met:
        """What the policy of the next run starts from."""
        return self.counts.met


def learned(without: str = "") -> dict[Kind, Experience]:
    """What the user's runs have met, by cloud and GPUs. `without` is a run's URL: it has its own diary."""
    runs = [{(met.cloud, met.gpus): met.counts for met in run} for url, run in _read().runs.items() if url != without]
    return {
        kind: Experience(kind, counts, sum(kind in run for run in runs))
        for kind, counts in total(runs).items()
        if counts.machine_hours >= MIN_MACHINE_HOURS
    }


def _read() -> _Book:
    try:
        return _Book.model_validate_json(experience_path().read_bytes())
    except (OSError, ValidationError):
        return _Book()


def _write(book: _Book) -> None:
    path = experience_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, book.model_dump_json(indent=1).encode())
