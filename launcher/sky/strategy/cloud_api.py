"""What SkyPilot does for the conductor, as a protocol: tests conduct a fake one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from checkpoints.errors import NotusError
from launcher.policy.model import Place
from launcher.sky.strategy.provision_log import Answer


class LimitReached(NotusError):
    """The run ends here, its state saved: a limit, or no place at all."""

    exit_code = 3


@dataclass(frozen=True)
class Up:
    """A machine runs the job."""

    place: Place
    since: datetime
    """When this place was asked for: its cloud bills from some seconds later on."""
    submitted_at: float
    """What SkyPilot wants back: the job's start, in seconds since 1970."""
    refused: tuple[Answer, ...] = ()
    """Places that were asked before it."""


@dataclass(frozen=True)
class Lost:
    """A machine came, and did not run the job: it was gone before, or its set-up failed or took too long."""

    place: Place
    since: datetime
    refused: tuple[Answer, ...] = ()
    said: str = ""
    """SkyPilot's words."""
    taken: bool = False
    """Its cloud took it away: then it counts as a preemption."""


@dataclass(frozen=True)
class Refused:
    """None of the places had a machine."""

    refused: tuple[Answer, ...]


@dataclass(frozen=True)
class Told:
    """What the trainer on the next machine is told, in its environment."""

    hours_to_preemption: float
    """Mean life of a machine in the place that is asked first: its save interval follows from it."""
    dead_writer: str = ""
    """The id of the writer whose machine is terminated: its lease is not waited for."""
    spent_usd: float = 0.0
    """What the run has cost when the machine is asked for."""
    price_usd_per_hour: float = 0.0
    """Of the dearest place that is asked."""
    most_s: float = math.inf
    """For the request, all places together: then it is cancelled. Not for the trainer."""


class Hands(Protocol):
    """What SkyPilot does for us."""

    async def places(self) -> list[Place]:
        """Every market of the task that may be asked, with today's price. Raises `NotusError` where there is none."""

    def listed_usd(self, place: Place) -> float | None:
        """What today's list asks per hour there, to be believed or not; None = it says nothing."""

    async def machine(self) -> tuple[Place, datetime] | None:
        """The machine that the job has, and since when it is paid, as SkyPilot knows; None = it has none."""

    async def launch_in(self, places: Sequence[Place], told: Told) -> Up | Lost | Refused:
        """Ask for a machine, one place after the other, and start the job on it. Bounded in time."""

    async def release(self) -> None:
        """Give the machine back; nothing happens if it is gone. Raises what SkyPilot raises if that fails."""

    async def cloud_says_gone(self) -> bool:
        """Does the cloud report the machine as terminated or stopped? False if it does not answer."""

    async def wait(self, seconds: float, reason: str) -> None:
        """Sleep, showing why."""
