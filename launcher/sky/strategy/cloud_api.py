"""The protocol through which the run controller uses SkyPilot; tests have a fake."""

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
    """The run ends with its state saved, because of a limit or because there is no place at all."""

    exit_code = 3


@dataclass(frozen=True)
class Up:
    """A machine runs the job."""

    place: Place
    since: datetime
    """When this place was requested: its cloud bills from some seconds later on."""
    submitted_at: float
    """The job's start in seconds since 1970, which SkyPilot needs."""
    refused: tuple[Answer, ...] = ()
    """Places that were tried before it."""


@dataclass(frozen=True)
class Lost:
    """A machine came but did not run the job: it was gone before, or its set-up failed or took too long."""

    place: Place
    since: datetime
    refused: tuple[Answer, ...] = ()
    message: str = ""
    """SkyPilot's message."""
    taken: bool = False
    """Its cloud took it away, which counts as a preemption."""


@dataclass(frozen=True)
class Refused:
    """None of the places had a machine."""

    refused: tuple[Answer, ...]


@dataclass(frozen=True)
class LaunchParams:
    """Parameters of a launch; most go to the trainer's environment on the next machine."""

    hours_to_preemption: float
    """Mean life of a machine in the place tried first, which determines the save interval."""
    dead_writer: str = ""
    """The id of the writer whose machine is terminated, so that its lease is not waited for."""
    spent_usd: float = 0.0
    """Cost of the run until this launch."""
    price_usd_per_hour: float = 0.0
    """Price of the most expensive place that is tried."""
    most_s: float = math.inf
    """Timeout of the request over all places. Not for the trainer."""


class CloudApi(Protocol):
    """What the run controller needs from SkyPilot."""

    async def places(self) -> list[Place]:
        """Every place that the task may use, with its current price. Raises `NotusError` if there is none."""

    def listed_usd(self, place: Place) -> float | None:
        """The current list price per hour there, credible or not; None = not listed."""

    async def machine(self) -> tuple[Place, datetime] | None:
        """The job's machine in SkyPilot, and since when it is billed; None = it has none."""

    async def launch_in(self, places: Sequence[Place], params: LaunchParams) -> Up | Lost | Refused:
        """Request a machine, one place after the other, and start the job on it. Bounded in time."""

    async def release(self) -> None:
        """Release the machine; does nothing if it is gone. Raises SkyPilot's errors."""

    async def cloud_says_gone(self) -> bool:
        """Does the cloud report the machine as terminated or stopped? False if it does not answer."""

    async def wait(self, seconds: float, reason: str) -> None:
        """Sleep, and show the reason."""
