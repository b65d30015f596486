"""A run's identity, written once before anything is computed: recipe, data, token ids, base model.

A checkpoint has a fingerprint too. But an attempt that dies before its first save leaves reference values in the cache,
and a successor with another base model of the same name would train against them.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from checkpoints.errors import AlreadyExists, CorruptCheckpoint
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.run_log.run_record import PINS_KEY, RUN_KEY, RunRecord, read_run
from checkpoints.storage.base import Store
from trainer.config.fingerprint import check_fingerprint

logger = logging.getLogger(__name__)


class Pins(Record):
    """pins.json."""

    fingerprint: dict[str, Any]
    """The first attempt's, see `trainer.config.fingerprint`."""


def read_pins(store: Store) -> dict[str, Any] | None:
    """The fingerprint that the run began with; None if it has none yet, or its pins are damaged."""
    try:
        pins = read_if_there(store, PINS_KEY, Pins)
    except CorruptCheckpoint as error:
        logger.warning("%s: damaged, so the run's identity is read from its checkpoints only", error.message)
        return None
    return pins.fingerprint if pins else None


def run_record(store: Store) -> RunRecord | None:
    """run.json, or None if there is no run. A damaged or lost one is rebuilt from the pins: its model is finished.

    Raises `CorruptCheckpoint` if it is damaged, and there are no pins either.
    """
    fault: CorruptCheckpoint | None = None
    try:
        record = read_run(store)
    except CorruptCheckpoint as error:
        record, fault = None, error
    if record is not None and not _is_recipe(record.recipe):
        record, fault = None, CorruptCheckpoint(f"{store.url}/{RUN_KEY} holds no recipe")
    if record is not None:
        return record
    if (pinned := read_pins(store)) is None:
        if fault is not None:
            raise fault
        return None
    name, recipe = store.url.rsplit("/", 1)[-1], pinned["recipe"]
    logger.warning("run.json is %s: taken from %s instead", "damaged" if fault else "missing", PINS_KEY)
    now = datetime.now(UTC)
    return RunRecord(name=name, created_at=now, recipe_name="", recipe=recipe, identity=recipe, versions={})


def _is_recipe(recipe: Any) -> bool:
    """Has it the parts that an export reads? Older versions wrote keys that this one no longer knows."""
    parts = [recipe.get(part) for part in ("model", "dataset", "training")] if isinstance(recipe, dict) else [None]
    return all(isinstance(part, dict) for part in parts)


def check_pins(store: Store, mine: dict[str, Any], *, begun: bool) -> None:
    """Compare with what the run began with, or record it. `begun`: it has a checkpoint, and so a fingerprint.

    Raises `NotExact` if it would be another run, and what the store raises.
    """
    pinned = read_pins(store)
    if pinned is None and not begun:
        pins = Pins(fingerprint=mine)
        try:
            store.create(PINS_KEY, pins.to_json())
        except AlreadyExists:  # damaged, or written by another attempt meanwhile
            pinned = read_pins(store)
            if pinned is None:
                store.put(PINS_KEY, pins.to_json())
    changes = check_fingerprint(pinned, mine) if pinned is not None else []
    for changed in [] if begun else changes:  # if begun, the checkpoint's own fingerprint decides
        logger.warning("the run was begun otherwise, before its first save, of which nothing is used: %s", changed)
