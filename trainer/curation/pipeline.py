"""The steps of a curation: read, pair, count, write, push."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.markup import escape
from rich.progress import track

from checkpoints.records.file_transfer import hash_file
from checkpoints.util.atomic_folder import CARD, is_whole, whole_folder
from checkpoints.util.command_line import console
from trainer.curation.binarize import LeftOut, Pair, Ratings, Rules, binarize
from trainer.curation.io import card, find_files, read_contamination, read_rows, write_shards
from trainer.curation.report import REPORT, Report
from trainer.curation.ultrafeedback import read_record
from trainer.errors import DataError
from trainer.hub.push import check_push, push_folder


class Destination(NamedTuple):
    """Where the pairs go."""

    folder: Path
    shard_rows: int
    push: str | None
    private: bool


def curate_files(
    inputs: Sequence[Path],
    where: Destination,
    *,
    rejected: Literal["random", "lowest"],
    seed: int,
    contamination: Path | None,
    drop_sources: Sequence[str],
    ratings: Ratings = "any",
) -> dict[str, Any]:
    """Make the pairs of all files; returns the report. Raises `DataError` and `UserError`, and leaves no folder then.

    A failed push raises `TrainingFailed` and leaves the folder: repeating the call only pushes it.
    """
    files = find_files(inputs)
    contaminated = read_contamination(contamination) if contamination else frozenset()
    rules = Rules(rejected, seed, contaminated, frozenset(drop_sources), ratings)
    if where.push is not None:
        check_push(where.push, "dataset")
    made = {
        "curated": [hash_file(path) for path in files],
        "rules": [
            rejected,
            seed,
            hash_file(contamination) if contamination else None,
            sorted(rules.dropped_sources),
            ratings,
        ],
        "shard_rows": where.shard_rows,
    }
    if where.push is not None and is_whole(where.folder, made):  # its push failed
        counts: dict[str, Any] = json.loads((where.folder / REPORT).read_bytes())
    else:
        counts = _curate(files, where, rules, made)
    if where.push is not None:
        push_folder(where.push, where.folder, private=where.private, kind="dataset")
    return counts


def _curate(files: Sequence[Path], where: Destination, rules: Rules, made: dict[str, Any]) -> dict[str, Any]:
    """Write the folder; returns the report."""
    report = Report()
    with whole_folder(where.folder.absolute(), made) as folder:
        write_shards(_pairs(files, rules, report), folder, where.shard_rows)
        counts = report.as_dict(rules)
        if not report.pairs:
            raise DataError(
                f"none of the {report.records} records makes a pair: {counts['left_out']}",
                "give UltraFeedback as OpenBMB publishes it: instruction, completions with annotations",
            )
        report.write(folder, rules)
        text = card(counts, rules, where.push or "UltraFeedback, binarized by the mean rating")
        (folder / CARD).write_text(text, encoding="utf-8")
    return counts


def _pairs(files: Sequence[Path], rules: Rules, report: Report) -> Iterator[Pair]:
    screen = console(stderr=True)
    for path in files:
        rows = track(
            read_rows(path),
            description=escape(path.name),
            console=screen,
            disable=not screen.is_terminal,
            transient=True,
        )
        for row in rows:
            record = read_record(row, strict=rules.ratings == "all")
            made = binarize(record, rules)
            report.add(record, made)
            if not isinstance(made, LeftOut):
                yield made


def as_text(report: dict[str, Any], folder: Path) -> str:
    """The report for people."""
    lines = [f"{report['pairs']:,} pairs from {report['records']:,} records, in {folder}/data"]
    for what, counts in (("records", report["left_out"]), ("answers", report["answers_left_out"])):
        lines += [f"  {what} left out, {reason}: {count:,}" for reason, count in counts.items()]
    lines += [
        f"  answers without a rating of {aspect}, by the mean of the others: {count:,}"
        for aspect, count in report["answers_by_aspect_not_rated"].items()
    ]
    lines += [f"  {what} matched nothing: is it spelt as in the data?" for what in report["matched_nothing"]]
    comparable = report["comparable_with_overall_score"]
    if comparable:
        disagree = report["mean_disagrees_with_overall_score"]
        lines.append(f"  the overall score would have chosen another answer: {disagree:,} of {comparable:,}")
    return "\n".join(lines) + "\n"
