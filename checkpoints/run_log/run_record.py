"""A run in the bucket: its folder, its immutable description, its heartbeat and its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import Field

from checkpoints.errors import CorruptCheckpoint, UserError
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
"""What decides the result, written by the trainer, see `trainer.config.run_pins`."""
HEARTBEAT_KEY = "heartbeat.json"
CONTROLLER_KEY = "controller.json"


class RunRecord(Record):
    """run.json: written once, at the launch."""

    version: Literal[1] = 1
    name: str
    created_at: datetime
    recipe_name: str
    recipe: dict[str, Any] = Field(description="the whole recipe, as it was validated")
    identity: dict[str, Any] = Field(description="the part of it that decides the numbers")
    versions: dict[str, str] = Field(description="of the packages at the launch")


class Heartbeat(Record):
    """heartbeat.json: overwritten every few seconds while an attempt lives."""

    attempt: int
    time: datetime
    phase: str = Field(description="starting, training, saving, exporting, ...")
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    done: int = Field(default=0, description="what the phase counts")
    of: int = Field(default=0, description="how much of it there is; 0 = not known")
    moved: int = Field(default=0, description="changes while anything of a phase before the training moves")


class ControllerBeat(Record):
    """controller.json: overwritten at each look of the controller at the run, so that the machine knows it is there."""

    version: Literal[1] = 1
    time: datetime = Field(description="by the controller's clock; a machine only looks whether it changes")
    launch: int = Field(default=0, ge=0, description="how many machines the run has asked for")
    price_usd_per_hour: float = Field(default=0.0, ge=0, description="of the machine that is up; 0 = not known")


def open_run(bucket_url: str, name: str, environment: Mapping[str, str] | None = None) -> Store:
    """The store of one run; raises `InvalidName` for a name that isn't one. `environment`: see `open_store`."""
    return open_store(bucket_url, check_run_name(name), environment)


def register_run(store: Store, record: RunRecord) -> RunRecord:
    """Write run.json, or return the one that is there: launching the same name again goes on with that run.

    Raises `UserError` if the run exists with another recipe, naming the first key that differs.
    """
    try:
        existing = read_run(store)
    except CorruptCheckpoint as error:  # who the run is stands in its pins and checkpoints too
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
    """The newest heartbeat; None where there is none, or a damaged one: the next one comes in seconds."""
    return _unless_damaged(store, HEARTBEAT_KEY, Heartbeat)


def read_controller_beat(store: Store) -> ControllerBeat | None:
    """The controller's newest sign of life; None where there is none, or a damaged one."""
    return _unless_damaged(store, CONTROLLER_KEY, ControllerBeat)


def _unless_damaged(store: Store, key: str, record: type[R]) -> R | None:
    try:
        return read_if_there(store, key, record)
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        return None


def write_controller_beat(store: Store, time: datetime, launch: int = 0, price_usd_per_hour: float = 0.0) -> None:
    """The controller looks after the run, and knows what its machine costs."""
    beat = ControllerBeat(time=time, launch=launch, price_usd_per_hour=price_usd_per_hour)
    store.put(CONTROLLER_KEY, beat.to_json())


def list_runs(bucket_url: str) -> list[str]:
    """Names of the runs in a bucket. Looks at one level only: what else is in the bucket doesn't matter."""
    names = [name for name in open_store(bucket_url).folders() if is_run_name(name)]
    known = parallel_map(lambda name: is_run(open_run(bucket_url, name)), names, 16)
    return [name for name, there in zip(names, known, strict=True) if there]


def is_run(store: Store) -> bool:
    """Has it a run.json, or a damaged one beside the rest of a run? A file of that name may be something else's."""
    try:
        return read_run(store) is not None
    except CorruptCheckpoint:
        return any(store.list("events"))


def read_run_if_valid(store: Store) -> RunRecord | None:
    """run.json, or None where it is missing, damaged or something else's."""
    try:
        return read_run(store)
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        return None
