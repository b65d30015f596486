"""The launches of a run, numbered create-once in its bucket, so that their order doesn't depend on clocks.

    launches/0001.json, launches/0002.json, ...

The launching machine, the jobs controller and the training machine each have a clock. One that is minutes ahead would
put its `planned` after the `machine_up` that followed it. The number travels with the job (`NOTUS_LAUNCH`), and every
event of a launch carries it.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Iterable
from typing import Literal

from pydantic import AwareDatetime, Field

from checkpoints.errors import AlreadyExists, StoreError
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there, read_record
from checkpoints.records.write_once import put_once
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock

FOLDER = "launches"
MOST_RACES = 100
"""Launchers of one run that may take a number at the same moment; more is a fault. Bounds the loop."""
_KEY = re.compile(rf"{FOLDER}/([0-9]{{4,}})\.json")


class Launch(Record):
    """launches/NNNN.json: written once, before anything is submitted."""

    version: Literal[1] = 1
    number: int = Field(ge=1)
    id: str = Field(description="of this record: two concurrent launchers never write the same bytes")
    submission: str = Field(description="id that travels with the job (NOTUS_SUBMISSION); '' = plain `sky jobs launch`")
    job: str = Field(default="", description="SkyPilot's job, if it came without a number and took this one itself")
    time: AwareDatetime
    host: str = Field(description="where it was launched from, see `this_host`")


def take_launch_number(store: Store, submission: str = "", clock: Clock | None = None, *, job: str = "") -> int:
    """The next number of this run; never given to another launch. Raises `StoreError`."""
    for _ in range(MOST_RACES):
        launch = Launch(
            number=newest_launch_number(store) + 1,
            id=uuid.uuid4().hex[:12],
            submission=submission,
            job=job,
            time=(clock or SystemClock()).now(),
            host=this_host(),
        )
        try:
            put_once(store, _key(launch.number), launch.to_json())
        except AlreadyExists:
            continue  # another launcher was faster
        return launch.number
    raise StoreError(f"{store.url}: no launch number is free after {MOST_RACES} tries", "launch again")


def this_host() -> str:
    """This machine's name and hardware address: two laptops may have the same name."""
    return f"{socket.gethostname()} {uuid.getnode():012x}"


def newest_launch_number(store: Store) -> int:
    """The newest number; 0 if the run has none: it was never launched, or before launches had numbers."""
    found = (_KEY.fullmatch(entry.key) for entry in store.list(FOLDER))
    return max((int(match[1]) for match in found if match), default=0)


def missing_launches(keys: Iterable[str]) -> list[str]:
    """Keys of the launch records that are missing below the newest number, given all keys of a run."""
    numbers = {int(match[1]) for key in keys if (match := _KEY.fullmatch(key))}
    return [_key(number) for number in range(1, max(numbers, default=0)) if number not in numbers]


def newest_launch(store: Store) -> Launch | None:
    """The last launch of this run, from any machine; None if the run has none."""
    number = newest_launch_number(store)
    return read_record(store, _key(number), Launch) if number else None


def launch_number_of(store: Store, job: str) -> int:
    """The newest number that this job has taken; 0 = none. Raises `StoreError`."""
    for number in range(newest_launch_number(store), 0, -1):
        launch = read_if_there(store, _key(number), Launch)
        if launch is not None and launch.job == job:
            return number
    return 0


def _key(number: int) -> str:
    return f"{FOLDER}/{number:04d}.json"
