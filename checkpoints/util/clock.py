"""Time behind a protocol, so that leases and events can be tested without waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

LONG_AGO = datetime.fromtimestamp(0, UTC)
"""Before anything of interest."""


class Clock(Protocol):
    """Wall time (UTC), time that passes, and sleeping."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; only differences mean anything. Use this clock for every wait.

        Setting the clock doesn't affect them; on Linux and macOS neither does suspending the machine.
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
    """A clock for tests and simulations. It advances only when set, or when something sleeps."""

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
        """As if the clock was set or the machine woke up: wall time jumps, monotonic time doesn't."""
        self._now = now


def looks(clock: Clock, every_s: float, limit_s: float) -> Iterator[float]:
    """Yield the seconds waited so far: immediately, after every pause, and a last time when `limit_s` is used up.

    Only the pauses are counted, so setting the clock or suspending the machine doesn't use up the limit. The time that
    the caller's check takes is not counted: it has limits of its own.
    """
    waited_s = 0.0
    yield waited_s
    while waited_s < limit_s:
        clock.sleep(every_s)
        waited_s += every_s
        yield waited_s
