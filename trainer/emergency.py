"""What to do with the last seconds of a machine. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Choice = Literal["finish, then save", "save now", "finish", "leave"]

COMMIT_S = 1.5
"""For the index, the manifest and HEAD after the last chunk: a handful of small requests one after the other."""
SAFETY = 1.2
"""Bandwidth measured in peace is not the bandwidth of an emergency."""


class Situation(NamedTuple):
    """What a rank knows when it hears that the machine goes. Of all ranks, the slowest counts."""

    seconds_left: float | None
    """None = nobody is in a hurry."""
    copy_s: float
    """For the snapshot itself."""
    snapshot_bytes: float
    in_flight_bytes: float
    """Not yet uploaded of the save that is on its way; 0 = none is."""
    bytes_per_second: float | None
    """Measured in earlier saves; None = there was none yet."""


def choose(situation: Situation) -> Choice:
    """What fits into the time that is left.

    Best is to finish the upload on its way and then save the newest step; then the newest step alone, which gives up
    the upload on its way; then that upload alone. If nothing fits, the last commit stays valid, and it is better not
    to start: a save that is cut short is only garbage.
    """
    if situation.seconds_left is None:
        return "finish, then save"
    if situation.bytes_per_second is None:
        return "save now"  # nothing to judge by, and nothing to lose: no save was ever completed
    rate = situation.bytes_per_second / SAFETY
    save_s = situation.copy_s + situation.snapshot_bytes / rate + COMMIT_S
    finish_s = situation.in_flight_bytes / rate + COMMIT_S if situation.in_flight_bytes else 0.0
    if finish_s + save_s <= situation.seconds_left:
        return "finish, then save"
    if save_s <= situation.seconds_left:
        return "save now"
    if situation.in_flight_bytes and finish_s <= situation.seconds_left:
        return "finish"
    return "leave"


def worst(situations: list[Situation]) -> Situation:
    """The slowest of each figure: one rank that is late makes the whole save late."""
    left = [s.seconds_left for s in situations if s.seconds_left is not None]
    rates = [s.bytes_per_second for s in situations if s.bytes_per_second is not None]
    return Situation(
        seconds_left=min(left) if left else None,
        copy_s=max(s.copy_s for s in situations),
        snapshot_bytes=max(s.snapshot_bytes for s in situations),
        in_flight_bytes=max(s.in_flight_bytes for s in situations),
        bytes_per_second=min(rates) if rates else None,
    )
