"""Compare a run bit for bit with an uninterrupted one, by hashes: no tensor is read."""

from __future__ import annotations

from typing import NamedTuple

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.errors import NotusError
from checkpoints.records.manifest import ShardIndex
from checkpoints.restore.shard_restore import differing_tensors
from checkpoints.run_log.metrics import read_metrics
from checkpoints.storage.base import Store

COMPARED_TREES = frozenset({"scheduler", "rng", "counters", "cursor", "optimizer"})
"""The other trees contain wall times and paths; their tensors are compared as well."""


class Comparison(NamedTuple):
    """The result of comparing two runs."""

    equal: bool
    steps: int
    tensors: int
    differences: tuple[str, ...]
    """The first few, for people."""


def compare_runs(one: Store, other: Store) -> Comparison:
    """Compare every rank's loss of every step and the whole state at the end.

    Raises:
        NotusError: one of the runs has no checkpoint.
    """
    mine, theirs = _losses(one), _losses(other)
    differences = [
        f"loss of rank {rank} at step {step}"
        for rank, step in sorted(mine.keys() | theirs.keys(), key=lambda item: (item[1], item[0]))
        if mine.get((rank, step)) != theirs.get((rank, step))
    ]
    my_shards, their_shards = _newest_shards(one), _newest_shards(other)
    if len(my_shards) != len(their_shards):
        differences.append(f"{len(my_shards)} ranks against {len(their_shards)}")
    tensors = 0
    for a, b in zip(my_shards, their_shards, strict=False):
        tensors += len(a.tensors)
        names = {record.name for record in (*a.tensors, *b.tensors)} | COMPARED_TREES
        differences += [f"{name} of rank {a.rank}" for name in differing_tensors(a, b) if name in names]
    steps = len({step for _, step in mine})
    return Comparison(not differences, steps, tensors, tuple(differences[:5]))


def _losses(run: Store) -> dict[tuple[int, int], list[str]]:
    """The exact losses of each rank and step; for a redone step those of the last attempt, which count."""
    return {(item.rank, item.step): item.values["losses_hex"] for item in read_metrics(run)}


def _newest_shards(run: Store) -> list[ShardIndex]:
    head = read_head(run)
    if head is None or not head.commits:
        raise NotusError(f"{run.url} has no checkpoint to compare")
    return [load_index(run, ref) for ref in load_manifest(run, head.commits[0]).shards]
