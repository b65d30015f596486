"""A run with a fake SkyPilot below its conductor: clouds with so many machines a place, and a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pytest

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import StoreError
from checkpoints.run_log.causes import AttemptOutcome
from checkpoints.run_log.event_kinds import AttemptEnded, AttemptStarted, Notice, Training
from checkpoints.run_log.event_log import Diary, Event, read_events
from checkpoints.run_log.run_record import HEARTBEAT_KEY, Heartbeat
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.policy.limits import Limits
from launcher.policy.model import Place
from launcher.sky.strategy.provision_log import Answer
from launcher.sky.strategy.run_controller import LaunchParams, Lost, Refused, RunController, Up

SPOT_A = Place("gcp", "us", "us-a", "A100:8", True, 10.0)
SPOT_B = Place("gcp", "us", "us-b", "A100:8", True, 11.0)
LAMBDA = Place("lambda", "us-east-1", None, "A100:8", False, 16.0)


class FakeSky:
    """Clouds with so many machines a place; time passes as on real ones."""

    def __init__(self, clock: FakeClock, stock: dict[Place, int]) -> None:
        self.clock = clock
        self.stock = stock
        self.asked: list[tuple[Place, ...]] = []
        self.told: list[LaunchParams] = []
        self.waits: list[float] = []
        self.released = 0
        self.up = False
        self.after_wait: dict[Place, int] = {}
        self.lost = 0
        """Machines that will be gone before they run the job."""
        self.taken = False
        """By their cloud."""
        self.told_of: set[Place] = set()
        self.mine: tuple[Place, datetime] | None = None
        """The machine that is up."""
        self.listed: dict[Place, float] = {}
        """Prices of places that may not be asked."""

    @property
    def lives_h(self) -> list[float]:
        return [told.hours_to_preemption for told in self.told]

    @property
    def dead_writers(self) -> list[str]:
        return [told.dead_writer for told in self.told]

    async def places(self) -> list[Place]:
        self.told_of |= set(self.stock)
        return list(self.stock)

    def listed_usd(self, place: Place) -> float | None:
        return self.listed.get(place)

    async def machine(self) -> tuple[Place, datetime] | None:
        return self.mine if self.up else None

    async def launch_in(self, places: Sequence[Place], told: LaunchParams) -> Up | Lost | Refused:
        assert set(places) <= self.told_of, "SkyPilot's resources are known for what `places` returned, and no other"
        self.asked.append(tuple(places))
        self.told.append(told)
        refused: tuple[Answer, ...] = ()
        for place in places:
            since = self.clock.now()
            self.clock.sleep(4)
            if self.stock[place] > 0:
                self.clock.sleep(90)
                if self.lost:
                    self.lost -= 1
                    return Lost(place, since, refused, "SkyPilot: connection reset", taken=self.taken)
                self.up, self.mine = True, (place, since)
                return Up(place, since, self.clock.now().timestamp(), refused)
            refused += (Answer(place, "ZONE_RESOURCE_POOL_EXHAUSTED"),)
        return Refused(refused)

    async def release(self) -> None:
        self.released += 1
        self.up = False

    async def cloud_says_gone(self) -> bool:
        return not self.up

    async def wait(self, seconds: float, reason: str) -> None:
        self.waits.append(seconds)
        self.clock.sleep(seconds)
        self.stock |= self.after_wait


class Run:
    """A run in memory, conducted."""

    def __init__(self, stock: dict[Place, int], **limits: Any) -> None:
        self.clock = FakeClock()
        self.store = ObjectStore.memory()
        self.sky = FakeSky(self.clock, stock)
        self.limits = Limits(hours=8.0, **limits)
        self.conductor = self.restarted()

    def restarted(self) -> RunController:
        self.sky.told_of.clear()
        self.conductor = RunController(self.store, self.limits, self.sky, self.clock)
        return self.conductor

    def place(self) -> None:
        asyncio.run(self.conductor.place())

    def launch(self) -> None:
        """A job's first machine."""
        asyncio.run(self.conductor.launch())

    def recover(self) -> float:
        return asyncio.run(self.conductor.recover())

    def look(self) -> bool:
        return asyncio.run(self.conductor.look())

    def train(
        self, attempt: int, *, minutes: float, ended: AttemptOutcome | None = None, notice: str | None = None
    ) -> None:
        """An attempt on the machine that is up."""
        diary = Diary(self.store, attempt, self.clock)
        diary.write(AttemptStarted())
        Lease.claim(self.store, Writer(id=f"w{attempt}", host="h", pid=1, pid_scope="x"), clock=self.clock).release()
        diary.write(Training(step=1, total_steps=1000))
        self.clock.sleep(minutes * 60)
        self.beat(attempt, 10)
        if notice:
            diary.write(Notice(source=notice))
        if ended:
            diary.write(AttemptEnded(outcome=ended, step=10))

    def beat(self, attempt: int, step: int) -> None:
        beat = Heartbeat(attempt=attempt, time=self.clock.now(), phase="training", step=step, total_steps=1000)
        self.store.put(HEARTBEAT_KEY, beat.to_json())

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.store) if event.kind == kind]


def away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket, for the run's conductor."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise StoreError("no route to the bucket")

    for name in ("get", "put", "create", "list", "swap"):
        monkeypatch.setattr(run.conductor._store, name, refuse, raising=False)


@contextlib.contextmanager
def beating(run: Run, attempt: int) -> Iterator[None]:
    """The attempt is alive: time doesn't pass without its heartbeat."""
    sleep = run.clock.sleep

    def sleep_while_it_beats(seconds: float) -> None:
        sleep(seconds)
        run.beat(attempt, 11)

    run.beat(attempt, 10)
    run.clock.sleep = sleep_while_it_beats  # type: ignore[method-assign]
    yield
    run.clock.sleep = sleep  # type: ignore[method-assign]
