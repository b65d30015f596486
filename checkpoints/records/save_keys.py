"""Where in a run the objects of a save lie."""

from __future__ import annotations


def save_prefix(epoch: int, step: int, writer_id: str, number: int) -> str:
    """The data folder of one save: every rank of the attempt computes the same, and no other attempt or save has it.

    A zombie's uploads can't touch its successor's.
    """
    return f"data/{save_name(epoch, step)}-{writer_id[:12]}-{number:04d}"


def save_name(epoch: int, step: int) -> str:
    """What all saves of a step by an attempt have in common."""
    return f"e{epoch:06d}-s{step:08d}"
