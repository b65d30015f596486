"""Folders of plain files in a run that matter as much as a checkpoint: `model/` and `final/`.

    FOLDER/NAME    the file
    FOLDER.json    the hash of each; written last

A checkpoint's weights are a model only together with the config and the tokenizer, so these are verified like the
weights: a file that isn't listed isn't part of the run, and one that differs from its hash is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from checkpoints.errors import CorruptCheckpoint, InvalidName, ObjectMissing
from checkpoints.records.file_transfer import check_object, fetch_file, hash_file
from checkpoints.records.manifest import Record, Xxh3
from checkpoints.records.verified_reads import read_if_there
from checkpoints.run_log.run_record import PINS_KEY
from checkpoints.storage.base import Store, exists
from checkpoints.util.keys import check_key

logger = logging.getLogger(__name__)

MODEL = "model"
"""Config and tokenizer of the base model, written once by the trainer: what weights need to be a model."""
FINAL = "final"
"""The finished model."""


class FileList(Record):
    """FOLDER.json."""

    version: Literal[1] = 1
    files: dict[str, Xxh3] = Field(description="xxh3-128 by the file's name")
    base: dict[str, str | None] = Field(default_factory=dict, description="for `final`: its base model")


def list_key(folder: str) -> str:
    """The key of a folder's list."""
    return f"{folder}.json"


def read_list(store: Store, folder: str) -> FileList | None:
    """The list, or None if there is none. Raises `CorruptCheckpoint`."""
    found = read_if_there(store, list_key(folder), FileList)
    for name in found.files if found else ():
        check_name(store, name)
    return found


def check_name(store: Store, name: str) -> str:
    """Return a file name that was read from a bucket; raises `CorruptCheckpoint` if it isn't a plain one."""
    try:
        if "/" not in check_key(name):
            return name
    except InvalidName:
        pass
    raise CorruptCheckpoint(f"{store.url} names a file {name[:80]!r}")


def put_files(store: Store, folder: str, paths: Iterable[Path], base: dict[str, str | None] | None = None) -> FileList:
    """Write local files into a folder of the run, and their list last. Raises what the store raises."""
    hashes = {}
    for path in paths:
        store.put_file(check_key(f"{folder}/{path.name}"), path)
        hashes[path.name] = hash_file(path)
    written = FileList(files=hashes, base=base or {})
    store.put(list_key(folder), written.to_json())
    return written


def fetch_files(store: Store, folder: str, files: dict[str, str], target: Path) -> None:
    """Fetch each of `files` (name -> hash) into the existing local folder `target`.

    Raises `CorruptCheckpoint` if one is missing or differs from its hash.
    """
    for name, digest in files.items():
        _read_listed(store, folder, name, lambda key: fetch_file(store, key, target / name, digest))  # noqa: B023


def _read_listed(store: Store, folder: str, name: str, read: Callable[[str], None]) -> None:
    """Call `read` with the key of a listed file; a missing file is damage."""
    key = f"{folder}/{check_name(store, name)}"
    try:
        read(key)
    except ObjectMissing as error:
        raise CorruptCheckpoint(f"{store.url}/{key} is missing") from error


def fetch_model_files(store: Store, target: Path) -> list[str]:
    """Fetch a run's config and tokenizer into the existing local folder `target`; return their names, [] if none.

    Raises `CorruptCheckpoint`. Files that aren't listed are skipped with a warning. If the run is older than the
    lists, all files are taken, also with a warning.
    """
    listed = read_list(store, MODEL)
    there = [entry.key.removeprefix(f"{MODEL}/") for entry in store.list(MODEL)]
    if listed is not None:
        if strange := sorted(set(there) - listed.files.keys()):
            logger.warning("skipped in %s/%s, because no list names it: %s", store.url, MODEL, ", ".join(strange))
        fetch_files(store, MODEL, listed.files, target)
        return sorted(listed.files)
    if there and exists(store, PINS_KEY):  # started by a version that also writes lists
        raise CorruptCheckpoint(
            f"{store.url}/{list_key(MODEL)} is missing, so {MODEL}/ can't be checked",
            "launch the run again: its next attempt rewrites both",
        )
    for name in there:
        (target / check_name(store, name)).write_bytes(store.get(f"{MODEL}/{name}").data)
    if there:
        logger.warning("%s was started by an older version: its %s/ is taken unchecked", store.url, MODEL)
    return there


def check_files(store: Store, folder: str, files: dict[str, str]) -> dict[str, str]:
    """Fault by name, '' = good. Reads each file completely and compares it with its hash."""
    faults = dict.fromkeys(files, "")
    for name, digest in files.items():
        try:
            _read_listed(store, folder, name, lambda key: check_object(store, key, digest))  # noqa: B023  # at once
        except CorruptCheckpoint as error:
            faults[name] = error.message
    return faults
