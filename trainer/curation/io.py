"""Reads records from files larger than memory, and writes pairs as parquet shards and the data set's card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.curation.binarize import Pair, Rules, plain
from trainer.data.preference_pairs import read_jsonl, read_lines
from trainer.errors import DataError

BATCH_ROWS = 256
"""Records held in memory at once."""
SUFFIXES = (".jsonl", ".json", ".parquet")


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The data files in `paths` (files and folders), ordered by name; raises `DataError` if there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(entry for entry in path.rglob("*") if entry.suffix in SUFFIXES)
            if not inside:
                raise DataError(f"{path} has no .jsonl, .json or .parquet file", "give the folder with the data files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no file {path}", "give UltraFeedback's data files, or a folder with them")
    return found


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows. Raises `DataError` with the line, or with parquet's error."""
    if path.suffix != ".parquet":
        yield from read_jsonl(path)
        return
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:  # the last: text that isn't UTF-8
        raise DataError(f"can't read {path} as parquet: {error}", "rewrite the file") from error


def read_contamination(path: Path) -> frozenset[str]:
    """Instructions to leave out: one per line, or the `instruction`, `prompt` or `question` of JSON lines."""
    if path.suffix == ".jsonl":
        names = ("instruction", "prompt", "question")
        rows = read_jsonl(path)
        found = [next((row[name] for name in names if isinstance(row.get(name), str)), None) for row in rows]
        if None in found:
            raise DataError(f"{path} has a line without {', '.join(names)}", "give one of these columns")
        return frozenset(plain(text) for text in found if text)
    return frozenset(plain(line) for _, line in read_lines(path) if line.strip())


def write_shards(pairs: Iterable[Pair], folder: Path, shard_rows: int) -> list[Path]:
    """Write data/train-00000.parquet and so on, with at most `shard_rows` rows each; returns the paths."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.float64() if name.endswith("_rating") else pa.string()) for name in Pair._fields])
    (folder / "data").mkdir()
    shards: list[Path] = []
    writer, room = None, 0
    try:
        for batch in _batches(pairs, min(BATCH_ROWS, shard_rows)):
            if writer is None or room < len(batch):
                if writer is not None:
                    writer.close()
                shards.append(folder / "data" / f"train-{len(shards):05d}.parquet")
                writer, room = parquet.ParquetWriter(shards[-1], schema, compression="zstd"), shard_rows
            writer.write_table(pa.Table.from_pylist([pair._asdict() for pair in batch], schema))
            room -= len(batch)
    finally:
        if writer is not None:
            writer.close()
    return shards


def _batches(pairs: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    batch: list[Pair] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def card(report: dict[str, Any], rules: Rules, title: str) -> str:
    """The README of the data set."""
    comparable = report["comparable_with_overall_score"]
    share = report["mean_disagrees_with_overall_score"] / comparable if comparable else 0.0
    rejected = "the lowest" if rules.rejected == "lowest" else f"a random lower one (seed {rules.seed})"
    left_out = (
        "\n".join(f"| {reason} | {count:,} |" for reason, count in report["left_out"].items()) or "| nothing | 0 |"
    )
    answers = "\n".join(f"| {reason} | {count:,} |" for reason, count in report["answers_left_out"].items())
    return f"""---
configs:
- config_name: default
  data_files: data/*.parquet
tags:
- preference
- dpo
---

# {title}

{report["pairs"]:,} preference pairs from {report["records"]:,} records of UltraFeedback, binarized by the mean of
the aspect ratings (helpfulness, honesty, instruction following, truthfulness): chosen is the answer with the highest
mean, rejected is {rejected}. For {share:.1%} of the pairs the overall score would have chosen another answer.

| record left out | count |
|---|---|
{left_out}

| answer left out | count |
|---|---|
{answers or "| none | 0 |"}

![Histograms of the ratings and margins](histograms.png)

Made by `notus-data curate`; `report.json` has all counts.
"""
