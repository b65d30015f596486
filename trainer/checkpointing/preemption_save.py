"""Decides what to do with the last seconds of a machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Choice = Literal["finish, then save", "finish, then see", "save now", "finish", "leave"]

COMMIT_S = 1.5
"""For the index, the manifest and HEAD after the last chunk: a few consecutive small requests."""
SAFETY = 1.2
"""Bandwidth may be lower in an emergency than when it was measured."""
STUCK_BYTES = 4 * (64 << 20)
"""Chunks in flight when an upload is abandoned can't be cancelled: as many as are sent at once."""


class Needed(NamedTuple):
    """Seconds that a rank needs, from its own size and bandwidth."""

    save_s: float
    """For a save of the newest step."""
    finish_s: float | None
    """For the save in flight; None if there is none."""
    give_up_s: float
    """Until an abandoned upload has released the network and the buffer."""


class Unknown(NamedTuple):
    """A rank without measurements: no save is done, and no chunk of the first one has arrived."""

    busy: bool


def needed(
    *, copy_s: float, snapshot_bytes: float, busy: bool, in_flight_bytes: float, bytes_per_second: float
) -> Needed:
    """Estimate what a rank needs.

    `busy`, not `in_flight_bytes`, shows whether a save is in flight: one whose bytes have all arrived may still wait
    for other ranks, and is not committed.
    """
    rate = bytes_per_second / SAFETY
    return Needed(
        save_s=copy_s + snapshot_bytes / rate + COMMIT_S,
        finish_s=in_flight_bytes / rate + COMMIT_S if busy else None,
        give_up_s=min(in_flight_bytes, STUCK_BYTES) / rate if busy else 0.0,
    )


def choose(seconds_left: float | None, ranks: Sequence[Needed | Unknown]) -> Choice:
    """What fits into the remaining time; the slowest rank counts.

    Each rank's seconds come from its own figures: under LoRA rank 0 has all the bytes and the others a few kB, whose
    "bandwidth" is mostly latency.

    The best choice is to finish the upload in flight and then save the newest step; then the newest step alone, which
    abandons the upload in flight; then that upload alone. If nothing fits, the last commit stays valid, and it is
    better not to start: a save that is cut short is only garbage.

    `seconds_left` None: there is no hurry. If a rank has no measurements, a save in flight is the better bet: it is
    ahead of a new one by what has been sent, and its end is the first measurement.
    """
    if seconds_left is None:
        return "finish, then save"
    known = [rank for rank in ranks if isinstance(rank, Needed)]
    unknown = [rank for rank in ranks if isinstance(rank, Unknown)]
    if unknown:
        return "finish, then see" if any(rank.busy for rank in unknown) else "save now"
    save_s = max(rank.save_s for rank in known)
    give_up_s = max(rank.give_up_s for rank in known)
    finishing = [rank.finish_s for rank in known if rank.finish_s is not None]
    finish_s = max(finishing) if finishing else 0.0
    if finish_s + save_s <= seconds_left:
        return "finish, then save"
    if give_up_s + save_s <= seconds_left:
        return "save now"
    if finishing and finish_s <= seconds_left:
        return "finish"
    return "leave"
