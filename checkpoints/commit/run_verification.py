"""Checks all of a run's objects besides its checkpoints, and reports which are damaged and which are not checked.

A checkpoint is verified from HEAD down (`restore.verify`). Besides it there are the model's own files, with a list of
hashes; the records of the run, each with its own checksum; and objects whose damage is harmless, reported with the
reason.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from checkpoints.commit.folder_manifest import FINAL, MODEL, check_files, list_key, read_list
from checkpoints.commit.head import HEAD_KEY, Head
from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.records.manifest import checked
from checkpoints.records.verified_reads import reread
from checkpoints.run_log.event_kinds import AttemptStarted, Exported
from checkpoints.run_log.event_log import Event, of_kind, read_events
from checkpoints.run_log.launches import missing_launches
from checkpoints.run_log.metrics import METRICS, damaged_metrics, missing_metrics
from checkpoints.run_log.run_record import PINS_KEY, RUN_KEY
from checkpoints.storage.base import Entry, Store
from checkpoints.util.parallel import parallel_map

CONCURRENCY = 16


class Finding(NamedTuple):
    """The result for an object, a folder or a checkpoint."""

    name: str
    size_bytes: int = 0
    fault: str = ""
    """What is wrong with it."""
    unread: str = ""
    """Why it was not checked, and what damage to it would mean. Good if it has neither."""
    step: int | None = None
    """For a checkpoint."""

    @property
    def good(self) -> bool | None:
        """None = not checked."""
        return False if self.fault else None if self.unread else True


_RECORD = re.compile(r"(run|pins|heartbeat|controller|launcher|request)\.json|(events|launches|readers)/.+\.json")
_LISTS = {list_key(folder): folder for folder in (MODEL, FINAL)}
_HARMLESS = {
    "cache": "not checked: verified by its own hashes when read, and remade if missing or damaged",
    "logs": "not checked: for people to read, nothing depends on it",
    "tensorboard": "not checked: for people to read, nothing depends on it",
    "report.html": "not checked: for people to read, nothing depends on it",
    "data": "not checked: not part of a checkpoint in HEAD; `notus-ckpt gc` deletes leftovers",
    "manifests": "not checked: not part of a checkpoint in HEAD; `notus-ckpt gc` deletes leftovers",
}
_STRANGE = "not part of this run: nothing reads it"


def check_rest(store: Store, head: Head, listing: Iterable[Entry], covered: Collection[str]) -> list[Finding]:
    """Check a run's objects (`listing`) except HEAD and those whose key begins with one of `covered`.

    Reads everything except what is harmless, which can take as long as downloading the finished model.
    """
    entries = {entry.key: entry for entry in listing}
    begins = tuple(covered)
    rest = [entry for key, entry in entries.items() if key != HEAD_KEY and not key.startswith(begins)]
    events = read_events(store)
    found = [
        *_folder(store, MODEL, entries, _model_files(store, entries)),
        *_folder(store, FINAL, entries, _final_files(store, events)),
        *_records(store, [entry for entry in rest if _RECORD.fullmatch(entry.key)]),
        *_metrics(store, [entry for entry in rest if METRICS.fullmatch(entry.key)]),
        *_missing(entries, head, events),
    ]
    known = {finding.name for finding in found} | _LISTS.keys()
    return found + _unread(entry for entry in rest if entry.key not in known)


class _FolderHashes(NamedTuple):
    """The hashes of a folder's files, if there are any."""

    files: dict[str, str] | None
    fault: str = ""
    unread: str = ""


def _model_files(store: Store, entries: Mapping[str, Entry]) -> _FolderHashes:
    try:
        listed = read_list(store, MODEL)
    except CorruptCheckpoint as error:
        return _FolderHashes(None, fault=error.message)
    if listed is not None:
        return _FolderHashes(listed.files)
    if PINS_KEY in entries and any(key.startswith(f"{MODEL}/") for key in entries):
        return _FolderHashes(None, fault=f"{store.url}/{list_key(MODEL)} is missing: its files can't be checked")
    return _FolderHashes(None, unread="not checked: written by an older version, without hashes")


def _final_files(store: Store, events: Iterable[Event]) -> _FolderHashes:
    exported = [payload for _, payload in of_kind(events, Exported)]
    try:
        listed = read_list(store, FINAL)
    except CorruptCheckpoint as error:
        return _FolderHashes(exported[-1].files if exported else None, fault=error.message)
    if listed is not None:
        changed = bool(exported) and exported[-1].files != listed.files
        return _FolderHashes(listed.files, fault="differs from the diary's record of the export" if changed else "")
    if exported:
        return _FolderHashes(exported[-1].files)
    return _FolderHashes(None, unread="not checked: an interrupted export; the run's next attempt rewrites it")


def _folder(store: Store, folder: str, entries: Mapping[str, Entry], hashes: _FolderHashes) -> list[Finding]:
    there = {key: entry for key, entry in entries.items() if key.startswith(f"{folder}/")}
    found = [Finding(list_key(folder), fault=hashes.fault)] if hashes.fault else []
    if hashes.files is None:
        why = hashes.unread or "not checked: its list is damaged"
        return found + [Finding(key, entry.size_bytes, unread=why) for key, entry in there.items()]
    named = {f"{folder}/{name}": fault for name, fault in check_files(store, folder, hashes.files).items()}
    found += [
        Finding(key, there[key].size_bytes if key in there else 0, fault=fault) for key, fault in sorted(named.items())
    ]
    strange = "not part of this run: no list names it, and nothing copies it"
    return found + [Finding(key, there[key].size_bytes, unread=strange) for key in sorted(there.keys() - named.keys())]


def _records(store: Store, entries: list[Entry]) -> list[Finding]:
    def check(entry: Entry) -> Finding:
        try:
            reread(lambda: checked(store.get(entry.key).data, f"{store.url}/{entry.key}"))
            return Finding(entry.key, entry.size_bytes)
        except CorruptCheckpoint as error:
            return Finding(entry.key, entry.size_bytes, fault=error.message)
        except ObjectMissing:
            return Finding(entry.key, entry.size_bytes, unread="replaced or deleted meanwhile")

    return parallel_map(check, entries, CONCURRENCY)


def _metrics(store: Store, entries: list[Entry]) -> list[Finding]:
    faults = damaged_metrics(store, entries)
    return [Finding(entry.key, entry.size_bytes, fault=faults[entry.key]) for entry in entries]


def _missing(entries: Mapping[str, Entry], head: Head, events: list[Event]) -> list[Finding]:
    """Objects that are missing, judging by the others."""
    keys = list(entries)
    found = [Finding(key, fault="is missing") for key in missing_launches(keys)]
    if PINS_KEY in entries and RUN_KEY not in entries:
        found.append(Finding(RUN_KEY, fault="is missing: the run is no longer found in its bucket"))
    if PINS_KEY not in entries and RUN_KEY in entries and list_key(MODEL) in entries:
        found.append(Finding(PINS_KEY, fault="is missing: its next attempt compares itself with the newest checkpoint"))
    if list_key(FINAL) not in entries and of_kind(events, Exported):
        found.append(Finding(list_key(FINAL), unread=f"is missing: {FINAL}/ is checked by the hashes in the diary"))
    started = of_kind(events, AttemptStarted)
    if head.commits and started:  # a custom training loop writes no diary and no metrics
        processes = {event.attempt: payload.processes for event, payload in started}
        names = missing_metrics(keys, processes, head.commits[0].step)
        found += [Finding(name, fault="is missing") for name in names]
    return found


def _unread(entries: Iterable[Entry]) -> list[Finding]:
    """Findings for what isn't read, by folder: one may contain thousands of objects."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        top = entry.key.split("/")[0]
        sizes[f"{top}/" if top in _HARMLESS and top != entry.key else entry.key].append(entry.size_bytes)
    return [
        Finding(name, sum(each), unread=_HARMLESS.get(name.rstrip("/"), _STRANGE))
        for name, each in sorted(sizes.items())
    ]
