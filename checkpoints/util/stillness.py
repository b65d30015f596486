"""How long other processes' records have been unchanged, by this process's own monotonic clock.

A lease, a reader's lease and a tombstone each hold for some seconds, and are written by a machine whose wall clock
isn't ours. So their times are never used. The process that has to decide polls, remembers what it read, and counts the
seconds in which it stayed the same. What it sees for the first time has been unchanged for 0 s, whatever the record
contains.
"""

from __future__ import annotations

from typing import NamedTuple

from checkpoints.util.clock import Clock


class _Seen(NamedTuple):
    state: str
    since: float
    changes: int


class Unchanged:
    """How long named things have been unchanged, by the token or the content that was read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def seconds(self, name: str, state: str = "", *, asked_at: float | None = None) -> float:
        """`name` has just been read as `state`: how many seconds has that been its state?

        `asked_at`: when the read began, on the monotonic clock. A write during the read may not be in the response, so
        the time counts from the end of the first read to the beginning of this one.
        """
        now = self._clock.monotonic()
        previous = self._seen.get(name)
        if previous is None or previous.state != state:
            self._seen[name] = _Seen(state, now, previous.changes + 1 if previous else 0)
            return 0.0
        return max(0.0, (now if asked_at is None else asked_at) - previous.since)

    def has_changed(self, name: str) -> bool:
        """Has it changed since it was first seen? Then its writer is alive."""
        previous = self._seen.get(name)
        return previous is not None and previous.changes > 0
