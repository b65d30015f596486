"""Where a save's objects are in a run."""

from __future__ import annotations


def save_prefix(epoch: int, step: int, writer_id: str, number: int) -> str:
    """The data folder of one save: the same on every rank of the attempt, and unique to the attempt and the save.

    So a zombie's uploads can't touch its successor's.
    """
    return f"data/{save_name(epoch, step)}-{writer_id[:12]}-{number:04d}"


def save_name(epoch: int, step: int) -> str:
    """The common prefix of an attempt's saves of a step."""
    return f"e{epoch:06d}-s{step:08d}"
