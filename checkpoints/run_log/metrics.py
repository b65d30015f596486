"""Each rank's metrics of each step, in the bucket: one object for the steps between two saves.

metrics/aATTEMPT-rRANK-sFIRST-LAST.jsonl    one line per step, and their checksum
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from checkpoints.errors import CorruptCheckpoint, ObjectMissing
from checkpoints.records.manifest import CHECK, checksum
from checkpoints.records.verified_reads import reread
from checkpoints.storage.base import Entry, Store
from checkpoints.util.parallel import parallel_map

logger = logging.getLogger(__name__)

CONCURRENCY = 16
MOST_RANKS = 4096
"""Checked for missing metrics; an attempt with more of them is damaged, or hostile."""
METRICS = re.compile(r"metrics/a(\d+)-r(\d+)-s(\d+)-(\d+)\.jsonl")
"""Attempt, rank, first and last step."""


class StepMetrics(NamedTuple):
    """One rank's metrics of one optimizer step."""

    attempt: int
    rank: int
    step: int
    values: dict[str, Any]


def write_metrics(store: Store, attempt: int, rank: int, lines: list[dict[str, Any]]) -> None:
    """Append metrics of consecutive steps. Called before each commit, so that no committed step lacks its metrics."""
    if lines:
        first, last = lines[0]["step"], lines[-1]["step"]
        key = f"metrics/a{attempt:04d}-r{rank:05d}-s{first:08d}-{last:08d}.jsonl"
        store.put(key, "".join(json.dumps(line) + "\n" for line in (*lines, {CHECK: checksum(lines)})).encode())


def read_metrics(store: Store, rank: int | None = None) -> list[StepMetrics]:
    """All metrics of a run: every step of every attempt, repeated steps more than once, by attempt and step.

    A damaged file is logged, and its steps are missing. `rank`: only the metrics of this one.
    """
    mine = "" if rank is None else f"-r{rank:05d}-"
    named = [(entry.key, METRICS.fullmatch(entry.key)) for entry in store.list("metrics") if mine in entry.key]
    keys = {key: (int(match[1]), int(match[2])) for key, match in named if match}
    parts = parallel_map(lambda key: _read_lines(store, key), keys, CONCURRENCY)
    found: dict[tuple[int, int, int], StepMetrics] = {}  # a write whose reply was lost was repeated
    for (attempt, rank), lines in zip(keys.values(), parts, strict=True):
        found |= {(attempt, line["step"], rank): StepMetrics(attempt, rank, line["step"], line) for line in lines}
    return [found[place] for place in sorted(found)]


def _read_lines(store: Store, key: str) -> list[dict[str, Any]]:
    try:
        return reread(lambda: _parse_lines(store, key))
    except CorruptCheckpoint as error:
        logger.warning("%s", error.message)
        return []


def _parse_lines(store: Store, key: str) -> list[dict[str, Any]]:
    try:
        *lines, last = [json.loads(line) for line in store.get(key).data.splitlines()]
        good = last[CHECK] == checksum(lines)
        whole = all(_is_line(line) for line in lines)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{store.url}/{key} is not a file of metrics") from error
    if not good:
        raise CorruptCheckpoint(f"{store.url}/{key} differs from its checksum")
    if not whole:
        raise CorruptCheckpoint(f"{store.url}/{key} has a line that is not a step's metrics")
    return lines


def _is_line(line: Any) -> bool:
    """Has a line what every reader takes for granted?"""
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return False
    numbers = (line.get("seconds", 0.0), line.get("stalled_s", 0.0))
    return all(isinstance(number, int | float) for number in numbers) and isinstance(line.get("losses_hex", []), list)


def damaged_metrics(store: Store, entries: Iterable[Entry]) -> dict[str, str]:
    """The fault of each metrics file by key; '' = good."""

    def check(entry: Entry) -> str:
        try:
            reread(lambda: _parse_lines(store, entry.key))
        except (CorruptCheckpoint, ObjectMissing) as error:
            return error.message
        return ""

    entries = list(entries)
    faults = parallel_map(check, entries, CONCURRENCY)
    return {entry.key: fault for entry, fault in zip(entries, faults, strict=True)}


def missing_metrics(keys: Iterable[str], processes: Mapping[int, int], step: int) -> list[str]:
    """Names of the steps up to the committed `step` that have no metrics, by rank.

    `processes`: the number of processes of each attempt. Rank 0 must have every step. Another rank must have the steps
    that rank 0 has of the attempts that it was in: a run may have resumed with fewer processes.
    """
    matches = [tuple(map(int, match.groups())) for key in keys if (match := METRICS.fullmatch(key))]
    missing = []
    for rank in range(min(MOST_RANKS, max(1, *processes.values()))):
        has = {n for _, of, first, last in matches if of == rank for n in range(first, last + 1)}
        due = {
            n
            for attempt, of, first, last in matches
            if of == 0 and processes.get(attempt, 1) > rank
            for n in range(first, min(last, step) + 1)
        }
        due = due if rank else set(range(1, step + 1))
        missing += [f"metrics of rank {rank}, {span}" for span in _spans(sorted(due - has))]
    return missing


def _spans(steps: list[int]) -> list[str]:
    """Ranges of ascending steps: `step 3`, `steps 5 to 9`."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return [f"step {first}" if first == last else f"steps {first} to {last}" for first, last in spans]
