"""One run as it lives: the real conductor over a fake SkyPilot, with machines, a trainer, a bucket and clocks that fail.

The world is honest only to itself: it bills by its own clock from the moment that a machine is asked for until its cloud
confirms its end. The conductor sees what a real one sees: the diary, heartbeats, and the answers of SkyPilot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

import stamina

from checkpoints.commit.head import Lease, Writer
from checkpoints.errors import NotusError, StoreError, UserError
from checkpoints.run_log.event_log import Diary
from checkpoints.run_log.run_record import HEARTBEAT_KEY, Heartbeat
from checkpoints.run_log.stop_request import Request, read_request
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock
from launcher.policy.limits import Limits
from launcher.policy.model import Place
from launcher.policy.settings import Settings
from launcher.sky.strategy.provision_log import Answer
from launcher.sky.strategy.run_controller import LaunchParams, LimitReached, Lost, Refused, RunController, Up

ASK_S = 20.0
"""For a zone's answer."""
BOOT_S = 90.0
PROVISION_S = 45 * 60.0
"""SkyPilot's requests are cancelled then, if nobody says less."""
POLL_S = 15.0
"""SkyPilot looks at the cluster that often."""
STEPS = 1000
GIVE_BACK_AFTER = 20
"""Tries without the bucket, as in the plugin."""
MOST_DAYS = 40.0
"""A world that lasts longer never ends."""


class Market(Protocol):
    """When a place has machines."""

    def lives_h(self, hour: float) -> float:
        """For how long a machine that is asked for now would live; 0 = there is none."""


@dataclass
class Always:
    """A machine whenever asked, for as long as wanted."""

    def lives_h(self, hour: float) -> float:
        return 1e9


@dataclass
class Never:
    """Sold out."""

    def lives_h(self, hour: float) -> float:
        return 0.0


@dataclass
class Flapping:
    """A machine whenever asked, and it is always taken away soon."""

    random: random.Random
    shortest_h: float
    longest_h: float

    def lives_h(self, hour: float) -> float:
        return self.random.uniform(self.shortest_h, self.longest_h)


class Spells:
    """Up and down in turn, with exponential lengths."""

    def __init__(self, chance: random.Random, up_h: float, down_h: float) -> None:
        self._chance, self._mean_h = chance, {True: up_h, False: down_h}
        self._up = chance.random() < up_h / (up_h + down_h)
        self._ends_h = chance.expovariate(1 / self._mean_h[self._up])

    def lives_h(self, hour: float) -> float:
        while self._ends_h <= hour:
            self._up = not self._up
            self._ends_h += self._chance.expovariate(1 / self._mean_h[self._up])
        return self._ends_h - hour if self._up else 0.0


@dataclass
class Trainer:
    """What is true of the training, whatever the plan says."""

    hours: float
    """Of work, at the true speed."""
    restart_h: float = 0.25
    """From a job's start to its first new step."""
    save_every_h: float = 1 / 6
    save_h: float = 1 / 60
    deaf: float = 0.0
    """Chance that an attempt obeys no request."""
    hangs: float = 0.0
    """Chance that an attempt stops making progress, at a random moment."""
    crashes: float = 0.0
    """Chance that an attempt crashes before its first save."""
    never_runs: float = 0.0
    """Chance that a machine is gone before it runs the job."""
    clock_off_s: float = 0.0


@dataclass
class Faults:
    """Of everything around the training."""

    release_fails: float = 0.0
    """Chance that giving a machine back fails, each time."""
    bucket_away: tuple[tuple[float, float], ...] = ()
    """From and to, hours, for the controller."""
    controller_restarts_h: tuple[float, ...] = ()
    launcher_clock_off_s: float = 0.0
    price_changes: tuple[tuple[float, float], ...] = ()
    """Hours, and the factor on all prices from then on."""
    surge: tuple[float, Place, float] | None = None
    """From an hour on, one place costs so many times as much. From three times on the list is not believed there."""
    prices_away: tuple[tuple[float, float], ...] = ()
    """From and to, hours: no list can be read."""
    never_ready: float = 0.0
    """Chance that a spot machine is billed and not ready before its request is cancelled."""


@dataclass
class Machine:
    """One that is billed."""

    place: Place
    asked_h: float
    up_h: float
    dies_h: float
    attempt: int = 0
    first_step_h: float = 0.0
    from_step: int = 0
    stuck_at_h: float = 1e9
    crashes_h: float = 1e9
    deaf: bool = False
    ended_h: float | None = None
    """Its attempt has; the machine is billed on."""
    exit_code: int = 0
    saved: int = 0
    next_save_h: float = 1e9
    last_save: LastSave | None = None


class LastSave(NamedTuple):
    """What a trainer does that was asked to stop or move: it is committed only if its machine lives to see it."""

    done_h: float
    step: int
    request: Request


@dataclass
class Ledger:
    """What really happened."""

    spent_usd: float = 0.0
    machines: list[tuple[Place, float, float]] = field(default_factory=list)
    """Place, asked, gone; hours."""
    finished_h: float | None = None
    ended_h: float = 0.0
    why: str = ""
    leaked: bool = False
    closing_h: float = 0.0
    """Longest time between a try to give a machine back and its end."""
    steps: int = 0

    def usd_of(self, *, spot: bool) -> float:
        """Of the machines of one market."""
        return sum(
            (gone - asked) * place.price_usd_per_hour for place, asked, gone in self.machines if place.spot == spot
        )


class AwayStore:
    """The controller's way to the bucket, which can be cut. Everything else is the store's."""

    def __init__(self, store: ObjectStore, world: LiveWorld) -> None:
        self._store, self._world = store, world

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if callable(found) and self._world.bucket_is_away():
            raise StoreError("no route to the bucket")
        return found


class LiveWorld:
    """A run, from its launch to its end. The clock moves only when something waits."""

    def __init__(
        self,
        markets: dict[Place, Market],
        trainer: Trainer,
        faults: Faults | None = None,
        *,
        planned_hours: float,
        deadline_h: float | None = None,
        budget_usd: float | None = None,
        look_h: float = 1 / 60,
        planned_save_h: float | None = None,
        seed: int = 0,
    ) -> None:
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.start = self.clock.now()
        self.store = ObjectStore.memory()
        self.markets, self.trainer, self.faults = markets, trainer, faults or Faults()
        deadline = None if deadline_h is None else self.start + timedelta(hours=deadline_h)
        settings = Settings(check_h=look_h, most_wait_h=12.0)
        self.limits = Limits(
            hours=planned_hours, deadline=deadline, budget_usd=budget_usd, save_h=planned_save_h, settings=settings
        )
        self.ledger = Ledger()
        self.rented: Machine | None = None
        self.attempts = 0
        self.committed = 0
        self.reading = False
        """The world's own look into the bucket, which is never away."""
        self.releasing_h: float | None = None
        self._trained: set[tuple[int, str]] = set()
        self.conductor = self._new_conductor()

    # --- time -------------------------------------------------------------------------------------

    @property
    def hour(self) -> float:
        return (self.clock.now() - self.start) / timedelta(hours=1)

    def moment(self, hour: float) -> datetime:
        return self.start + timedelta(hours=hour)

    def bucket_is_away(self) -> bool:
        return not self.reading and any(begin <= self.hour < end for begin, end in self.faults.bucket_away)

    def _sleep(self, hours: float) -> None:
        self.clock.sleep(hours * 3600)
        self._live()

    def _new_conductor(self) -> RunController:
        self.told_of: set[Place] = set()
        return RunController(AwayStore(self.store, self), self.limits, self, self.clock)  # type: ignore[arg-type]

    def price(self, place: Place) -> Place:
        return replace(place, price_usd_per_hour=place.price_usd_per_hour * self._factor(place, self.hour))

    def _factor(self, place: Place, hour: float) -> float:
        factor = 1.0
        for begins, change in self.faults.price_changes:
            factor = change if hour >= begins else factor
        surge = self.faults.surge
        return factor * (surge[2] if surge is not None and place == surge[1] and hour >= surge[0] else 1.0)

    # --- the run ----------------------------------------------------------------------------------

    async def run(self) -> Ledger:
        """What SkyPilot's controller does with a job of ours."""
        ahead = FakeClock(self.clock.now() + timedelta(seconds=self.faults.launcher_clock_off_s))
        Diary(self.store, 0, ahead).write("planned", strategy="NOTUS")
        restarts = sorted(self.faults.controller_restarts_h, reverse=True)
        next_look = 0.0
        call = self.conductor.launch
        try:
            while True:
                await self._patiently(call)
                next_look = self.hour + self.limits.settings.check_h
                while True:
                    self._check_time()
                    self._sleep(
                        POLL_S / 3600 if self.limits.settings.check_h < 1 / 30 else self.limits.settings.check_h
                    )
                    if restarts and self.hour >= restarts[-1]:
                        restarts.pop()
                        self.conductor = self._new_conductor()
                    if self.rented is None or self.rented.ended_h is not None:
                        break
                    if self.hour >= next_look - 1e-9:
                        next_look = self.hour + self.limits.settings.check_h
                        with contextlib.suppress(NotusError):
                            await self.conductor.look()
                if self.rented is not None and self.rented.exit_code in (0, 76):
                    self.ledger.why = "finished" if self.rented.exit_code == 0 else "stopped"
                    break
                if self.rented is not None and self.rented.exit_code not in (75,):
                    self.ledger.why = "failed"
                    break
                call = self.conductor.recover
        except LimitReached as error:
            self.ledger.why = f"limit: {error.message}"
        await self._clean_up()
        self.ledger.ended_h, self.ledger.steps = self.hour, self.committed
        self.ledger.leaked = self.rented is not None
        return self.ledger

    async def _patiently(self, call: object) -> None:
        """As the plugin: a bucket that is away is waited for, and after ten minutes a machine is given back anyway."""
        failures = 0
        while True:
            self._check_time()
            try:
                await call()  # type: ignore[operator]
                return
            except LimitReached:
                raise
            except NotusError:
                failures += 1
            if failures % GIVE_BACK_AFTER == 0 and self.rented is not None:
                await self.conductor.close("unknown")
            self._sleep(30 / 3600)

    async def _clean_up(self) -> None:
        """SkyPilot tears down the cluster of a job that is over; a failing teardown is tried again."""
        for _ in range(200):
            if self.rented is None:
                break
            try:
                await self.release()
            except RuntimeError:
                self._sleep(1 / 60)
        with contextlib.suppress(NotusError):
            await self.conductor.close("closed")

    def _check_time(self) -> None:
        if self.hour > MOST_DAYS * 24:
            raise AssertionError("this world runs for ever")

    # --- CloudApi ---------------------------------------------------------------------------------

    async def places(self) -> list[Place]:
        if any(begin <= self.hour < end for begin, end in self.faults.prices_away):
            raise UserError("no price list can be read", "fetch one")
        surge = self.faults.surge
        odd = surge[1] if surge is not None and surge[2] >= 3 and self.hour >= surge[0] else None
        found = [self.price(place) for place in self.markets if place != odd]
        self.told_of |= set(found)
        return found

    def listed_usd(self, place: Place) -> float | None:
        return next((self.price(one).price_usd_per_hour for one in self.markets if one == place), None)

    async def machine(self) -> tuple[Place, datetime] | None:
        machine = self.rented
        return None if machine is None else (self.price(machine.place), self.moment(machine.asked_h))

    async def launch_in(self, places: Sequence[Place], told: LaunchParams) -> Up | Lost | Refused:
        assert self.rented is None, "one cluster name has one machine"
        assert set(places) <= self.told_of, "SkyPilot's resources are known for what `places` returned, and no other"
        refused: tuple[Answer, ...] = ()
        for place in places:
            asked_h = self.hour
            self._sleep(ASK_S / 3600)
            known = next(one for one in self.markets if one == place)
            life_h = self.markets[known].lives_h(self.hour)
            if life_h <= 0:
                refused += (Answer(place, "ZONE_RESOURCE_POOL_EXHAUSTED"),)
                continue
            self.rented = Machine(self.price(known), asked_h, self.hour, self.hour + life_h)
            if place.spot and self.faults.never_ready and self.random.random() < self.faults.never_ready:
                self._sleep(min(PROVISION_S + 60 * len(places), told.most_s) / 3600)
                await self._try_to_release()
                return Lost(place, self.moment(asked_h), refused, "given up")
            self._sleep(BOOT_S / 3600)
            since = self.moment(asked_h)
            if self.rented is None:
                return Lost(place, since, refused, "connection reset")
            if self.random.random() < self.trainer.never_runs:
                self._sleep(0.1)
                await self._try_to_release()
                return Lost(place, since, refused, "its set-up failed")
            self._begin_attempt(self.rented)
            return Up(place, since, self.clock.now().timestamp(), refused)
        return Refused(refused)

    async def release(self) -> None:
        if self.rented is None:
            return
        if self.releasing_h is None:
            self.releasing_h = self.hour
        self._sleep(30 / 3600)
        if self.random.random() < self.faults.release_fails:
            raise RuntimeError("Failed to terminate the cluster")
        if self.rented is not None:
            self._end_machine()

    async def _try_to_release(self) -> None:
        with contextlib.suppress(RuntimeError):
            await self.release()

    async def cloud_says_gone(self) -> bool:
        return self.rented is None

    async def wait(self, seconds: float, reason: str) -> None:
        self._check_time()
        self._sleep(seconds / 3600)

    # --- the machine ------------------------------------------------------------------------------

    def _begin_attempt(self, machine: Machine) -> None:
        trainer, chance = self.trainer, self.random
        machine.first_step_h = self.hour + trainer.restart_h
        machine.from_step = machine.saved = self.committed
        machine.next_save_h = machine.first_step_h + trainer.save_every_h
        machine.deaf = chance.random() < trainer.deaf
        if chance.random() < trainer.hangs:
            machine.stuck_at_h = self.hour + chance.uniform(0.0, 1.5) * (trainer.restart_h + trainer.hours)
        if chance.random() < trainer.crashes:
            machine.crashes_h = self.hour + chance.uniform(0.1, 1.0) * (trainer.restart_h + trainer.save_every_h)

    def _steps_at(self, machine: Machine, hour: float) -> int:
        worked_h = max(0.0, min(hour, machine.stuck_at_h) - machine.first_step_h)
        return min(STEPS, machine.from_step + int(worked_h / self.trainer.hours * STEPS))

    def _live(self) -> None:
        """Everything that happened on the machine until now."""
        machine = self.rented
        if machine is None:
            return
        self.reading = True
        try:
            alive_h = min(self.hour, machine.dies_h)
            if machine.ended_h is None and machine.first_step_h:
                self._train(machine, alive_h)
            if self.rented is not None and self.hour >= machine.dies_h:
                self._end_machine(machine.dies_h)
        finally:
            self.reading = False

    def _train(self, machine: Machine, until_h: float) -> None:
        begins_h = machine.first_step_h - self.trainer.restart_h * 2 / 3
        if not machine.attempt and min(until_h, machine.stuck_at_h) >= begins_h:
            self._claim(machine, begins_h)
        if not machine.attempt:
            return
        if machine.last_save is not None:
            self._see_last_save_through(machine, machine.last_save, until_h)
            return
        if machine.crashes_h <= until_h:
            self._end_attempt(machine, machine.crashes_h, "failed", 75)
            return
        if until_h >= machine.first_step_h and machine.from_step >= 0 and machine.stuck_at_h > machine.first_step_h:
            self._note(machine, machine.first_step_h, "training", step=machine.from_step + 1, total_steps=STEPS)
        self._save(machine, until_h)
        if self._steps_at(machine, until_h) >= STEPS:
            self._finish(machine, until_h)
            return
        self._obey(machine, until_h)

    def _claim(self, machine: Machine, hour: float) -> None:
        writer = Writer(id=f"w{self.attempts}", host="h", pid=1, pid_scope="x")
        lease = Lease.claim(self.store, writer, clock=FakeClock(self.moment(hour + 1)))
        lease.release()
        machine.attempt = self.attempts = lease.head.epoch
        self._note(machine, hour, "attempt_started")

    def _save(self, machine: Machine, until_h: float) -> None:
        while machine.next_save_h + self.trainer.save_h <= min(until_h, machine.stuck_at_h):
            step = self._steps_at(machine, machine.next_save_h)
            if step > machine.saved:
                self._commit(machine, machine.next_save_h + self.trainer.save_h, step)
            machine.next_save_h += self.trainer.save_every_h

    def _commit(self, machine: Machine, hour: float, step: int) -> None:
        machine.saved = self.committed = max(step, self.committed)
        seconds = self.trainer.save_h * 3600
        self._note(machine, hour, "saved", step=step, upload_s=seconds, commit_s=0.1)

    def _finish(self, machine: Machine, until_h: float) -> None:
        done_h = machine.first_step_h + (STEPS - machine.from_step) / STEPS * self.trainer.hours + self.trainer.save_h
        if until_h < done_h:
            return
        self._commit(machine, done_h, STEPS)
        self.ledger.finished_h = done_h
        self._end_attempt(machine, done_h, "finished", 0)
        self._note(machine, done_h, "finished", step=STEPS)

    def _obey(self, machine: Machine, until_h: float) -> None:
        request = read_request(self.store)
        stuck = until_h >= machine.stuck_at_h
        if request is None or not request.is_for(machine.attempt) or machine.deaf or stuck:
            self._beat(machine, until_h)
            return
        self._note(machine, until_h, "notice", source=request.action)
        trained = until_h > machine.first_step_h
        done_h = until_h + (self.trainer.save_h if trained else 0.0)
        machine.last_save = LastSave(done_h, self._steps_at(machine, until_h) if trained else 0, request)
        self._see_last_save_through(machine, machine.last_save, until_h)

    def _see_last_save_through(self, machine: Machine, save: LastSave, until_h: float) -> None:
        if until_h < save.done_h:
            self._beat(machine, until_h)
            return
        if save.step > machine.saved:
            self._commit(machine, save.done_h, save.step)
        stopped, request = save.request.action == "stop", save.request
        self._end_attempt(machine, save.done_h, "stopped" if stopped else "preempted", 76 if stopped else 75)
        if stopped:
            self._note(machine, save.done_h, "stopped", reason=request.reason, limit=request.limit, step=self.committed)

    def _end_attempt(self, machine: Machine, hour: float, outcome: str, code: int) -> None:
        machine.ended_h, machine.exit_code = hour, code
        self._note(machine, hour, "attempt_ended", outcome=outcome, step=self.committed)

    def _beat(self, machine: Machine, hour: float) -> None:
        training = hour >= machine.first_step_h
        phase = "training" if training else "preparing" if hour > machine.first_step_h - 0.2 else "loading"
        step = self._steps_at(machine, hour) if training else 0
        off = timedelta(seconds=self.trainer.clock_off_s)
        beat = Heartbeat(
            attempt=machine.attempt, time=self.moment(hour) + off, phase=phase, step=step, total_steps=STEPS
        )
        self.store.put(HEARTBEAT_KEY, beat.to_json())

    def _note(self, machine: Machine, hour: float, kind: str, **data: object) -> None:
        key = (machine.attempt, kind)
        if kind == "training":  # lived through again at each look
            if key in self._trained:
                return
            self._trained.add(key)
        moment = self.moment(hour) + timedelta(seconds=self.trainer.clock_off_s)
        Diary(self.store, machine.attempt, FakeClock(moment)).write(kind, **data)

    def _end_machine(self, hour: float | None = None) -> None:
        machine = self.rented
        assert machine is not None
        gone_h = self.hour if hour is None else hour
        self.rented = None
        self.ledger.spent_usd += self._usd(machine, gone_h)
        self.ledger.machines.append((machine.place, machine.asked_h, gone_h))
        if self.releasing_h is not None:
            self.ledger.closing_h = max(self.ledger.closing_h, gone_h - self.releasing_h)
            self.releasing_h = None

    def _usd(self, machine: Machine, until_h: float) -> float:
        """By the price of each moment."""
        listed = next(place for place in self.markets if place == machine.place)
        changes = [hour for hour, _ in self.faults.price_changes]
        changes += [self.faults.surge[0]] if self.faults.surge is not None else []
        edges = [machine.asked_h, *(hour for hour in sorted(changes) if machine.asked_h < hour < until_h)]
        return sum(
            (end - begin) * listed.price_usd_per_hour * self._factor(listed, begin)
            for begin, end in zip(edges, [*edges[1:], until_h], strict=True)
        )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Without threads, which would only wait for each other here, without pauses in real time, and without log lines."""

    async def at_once(act: Callable[..., object], *args: object, **more: object) -> object:
        return act(*args, **more)

    logger = logging.getLogger("sky.notus")
    threaded, asyncio.to_thread = asyncio.to_thread, at_once  # type: ignore[assignment]
    was, logger.disabled = logger.disabled, True
    retried = stamina.is_active()
    stamina.set_active(False)
    try:
        yield
    finally:
        asyncio.to_thread, logger.disabled = threaded, was
        stamina.set_active(retried)
