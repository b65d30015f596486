"""Time behind a protocol, so that leases and events can be tested without waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

LONG_AGO = datetime.fromtimestamp(0, UTC)
"""Before anything that is of interest."""


class Clock(Protocol):
    """Wall time (UTC), time that passes, and sleeping."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; only differences mean anything. Anything that waits measures by this clock.

        Setting the clock doesn't change them, and on Linux and macOS neither does suspending the machine.
        """

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class FakeClock:
    """A clock for tests and simulations: it moves when told to, or when somebody sleeps."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._slept_s = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._slept_s

    def sleep(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._slept_s += seconds

    def set(self, now: datetime) -> None:
        """Someone sets the clock, or the machine wakes up: wall time jumps, and no time has passed here."""
        self._now = now


def looks(clock: Clock, every_s: float, limit_s: float) -> Iterator[float]:
    """The seconds waited so far, once per look: at once, after every pause, and a last time when `limit_s` is used up.

    The pauses themselves are counted, so that neither a clock that was set nor a suspended machine uses them up. What
    the caller's look takes is not counted: it has limits of its own.
    """
    waited_s = 0.0
    yield waited_s
    while waited_s < limit_s:
        clock.sleep(every_s)
        waited_s += every_s
        yield waited_s
