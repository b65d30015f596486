"""A run in the bucket: its folder, its immutable description and its heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, Field

from checkpoints.errors import CorruptCheckpoint, ObjectMissing, UserError
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.records.write_once import put_once
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Store
from checkpoints.util.diff import differences
from checkpoints.util.keys import check_run_name, is_run_name
from checkpoints.util.parallel import parallel_map

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

RUN_KEY = "run.json"
PINS_KEY = "pins.json"
"""What determines the result, written by the trainer, see `trainer.config.run_pins`."""
HEARTBEAT_KEY = "heartbeat.json"
CONTROLLER_KEY = "controller.json"


class RunRecord(Record):
    """run.json: written once, at launch."""

    version: Literal[1] = 1
    name: str
    created_at: AwareDatetime
    recipe_name: str
    recipe: dict[str, Any] = Field(description="the whole recipe, as it was validated")
    identity: dict[str, Any] = Field(description="the part of it that determines the numbers")
    versions: dict[str, str] = Field(description="of the packages at the launch")


class Heartbeat(Record):
    """heartbeat.json: overwritten every few seconds while an attempt is alive."""

    attempt: int
    time: AwareDatetime
    phase: str = Field(description="starting, training, saving, exporting, ...")
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    done: int = Field(default=0, description="the phase's progress")
    of: int = Field(default=0, description="its total; 0 = not known")
    moved: int = Field(default=0, description="changes while a phase before training makes progress")


class ControllerBeat(Record):
    """controller.json: overwritten each time the controller checks the run, so that the machine sees it is alive."""

    version: Literal[1] = 1
    time: AwareDatetime = Field(description="by the controller's clock; a machine only checks whether it changes")
    launch: int = Field(default=0, ge=0, description="how many machines the run has requested")
    price_usd_per_hour: float = Field(default=0.0, ge=0, description="of the machine that is up; 0 = not known")


def open_run(bucket_url: str, name: str, environment: Mapping[str, str] | None = None) -> Store:
    """The store of one run; raises `InvalidName` for an invalid name. `environment`: see `open_store`."""
    return open_store(bucket_url, check_run_name(name), environment)


def register_run(store: Store, record: RunRecord) -> RunRecord:
    """Write run.json, or return the existing one: launching the same name again resumes that run.

    Raises `UserError` if the run exists with another recipe, naming the first key that differs.
    """
    try:
        existing = read_run(store)
    except CorruptCheckpoint as error:  # the run's identity is also in its pins and checkpoints
        logger.warning("%s: rewritten", error.message)
        store.put(RUN_KEY, record.to_json())
        return record
    if existing is None:
        put_once(store, RUN_KEY, record.to_json())
        return record
    if difference := next(differences(existing.identity, record.model_dump(mode="json")["identity"]), None):
        raise UserError(
            f"run {record.name!r} exists with another recipe: {difference}",
            "choose another --name, or launch it with the recipe that it was started with",
        )
    return existing


def read_run(store: Store) -> RunRecord | None:
    """run.json, or None."""
    return read_if_there(store, RUN_KEY, RunRecord)


def read_heartbeat(store: Store) -> Heartbeat | None:
    """The newest heartbeat; None if there is none or it is damaged: the next one comes in seconds."""
    return _unless_damaged(store, HEARTBEAT_KEY, Heartbeat)


def read_controller_beat(store: Store) -> ControllerBeat | None:
    """The controller's newest sign of life; None if there is none or it is damaged."""
    return _unless_damaged(store, CONTROLLER_KEY, ControllerBeat)


def _unless_damaged(store: Store, key: str, record: type[R]) -> R | None:
    try:
        return read_if_there(store, key, record)
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        return None


def write_controller_beat(store: Store, time: datetime, launch: int = 0, price_usd_per_hour: float = 0.0) -> None:
    """Record that the controller is watching the run, and what its machine costs."""
    beat = ControllerBeat(time=time, launch=launch, price_usd_per_hour=price_usd_per_hour)
    store.put(CONTROLLER_KEY, beat.to_json())


def list_runs(bucket_url: str) -> list[str]:
    """Names of the runs in a bucket. Reads one level only: what else is in the bucket doesn't matter."""
    names = [name for name in open_store(bucket_url).folders() if is_run_name(name)]
    known = parallel_map(lambda name: is_run(open_run(bucket_url, name)), names, 16)
    return [name for name, there in zip(names, known, strict=True) if there]


def is_run(store: Store) -> bool:
    """Is there a valid run.json, or events beside a damaged one or beside pins? Other tools use that file name too."""
    try:
        if read_run(store) is not None:
            return True
        store.get(PINS_KEY)  # run.json is missing
    except ObjectMissing:
        return False
    except CorruptCheckpoint:
        pass
    return any(store.list("events"))


def read_run_if_valid(store: Store) -> RunRecord | None:
    """run.json, or None if it is missing, damaged or another tool's."""
    try:
        return read_run(store)
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        return None
