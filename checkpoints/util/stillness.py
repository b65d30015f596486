"""How long what others write has stood still, by this process's own monotonic clock.

A lease, the word of a reader, a tombstone: each is a promise of some seconds, made by a machine whose wall clock isn't
ours. So its time is never read. The process that has to know polls, remembers what was there, and counts the seconds
in which it stayed the same. What was never seen before has stood still for 0 s, whatever it says of itself.
"""

from __future__ import annotations

from typing import NamedTuple

from checkpoints.util.clock import Clock


class _Seen(NamedTuple):
    state: str
    since: float
    changes: int


class Unchanged:
    """Of things with a name, by the token or the content that was read."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def seconds(self, name: str, state: str = "", *, asked_at: float | None = None) -> float:
        """`name` has just been read as `state`: for how long has it been so?

        `asked_at`: when the read began, on the monotonic clock. What was written while the answer was on its way isn't
        in it, so the time counts from the end of the first read to the beginning of this one.
        """
        now = self._clock.monotonic()
        known = self._seen.get(name)
        if known is None or known.state != state:
            self._seen[name] = _Seen(state, now, known.changes + 1 if known else 0)
            return 0.0
        return max(0.0, (now if asked_at is None else asked_at) - known.since)

    def has_changed(self, name: str) -> bool:
        """Has it become something else since it was first seen? Then its writer is alive."""
        known = self._seen.get(name)
        return known is not None and known.changes > 0
