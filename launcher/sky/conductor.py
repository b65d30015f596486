"""Carries out what the policy says: asks for machines, notes in the run's diary what became of it, asks for moves.

Knows SkyPilot only as `Hands`, so that tests conduct a fake one. Everything that it has to remember is in the diary.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, Protocol

from checkpoints.causes import GoneCause
from checkpoints.clock import Clock
from checkpoints.errors import NotusError
from checkpoints.event_kinds import (
    Alarm,
    AttemptEnded,
    AttemptStarted,
    Decided,
    FalseRecovery,
    MachineGone,
    MachineUp,
    NoCapacity,
    Payload,
    Planned,
    RunEnd,
    Stopped,
)
from checkpoints.events import RUN_ENDS, Diary, Event, of_kind, read_events
from checkpoints.head import read_head
from checkpoints.requests import ask, read_request, withdraw
from checkpoints.run import Heartbeat, read_heartbeat
from checkpoints.store import Store
from launcher.policy.decide import decide
from launcher.policy.history import MachineSpell, machine_now, machines, place_data, why_gone
from launcher.policy.limits import Limits
from launcher.policy.model import Action, GiveUp, Launch, Move, Observation, Place, Wait
from launcher.policy.observe import hours_to_preemption, observe
from launcher.sky.asked import Answer

logger = logging.getLogger("sky.notus")
"""Below "sky", so that what we say is in the job's controller log."""

BEAT_WAIT_S = 12.0
"""A live trainer's heartbeat comes every 5 s."""
DEAF_S = 900.0
"""After so long nobody will obey any more: a step, a save and its upload take a few minutes."""
DEAF_SHARE = 2 / 3
"""Of a restart's time: what a trainer may take where a deadline waits. Later, on demand could not meet it any more."""
LOST_WAIT_S = 60.0
"""Before the next machine, where two in a row were gone before they ran the job."""
NO_PROGRESS_S = 1200.0
"""No new step for so long is worth an alarm: a step of a 7B model takes seconds, an evaluation minutes."""


class LimitReached(NotusError):
    """The run ends here, its state saved: the budget, or no place at all."""

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
    """A machine came, and was gone before it ran the job."""

    place: Place
    since: datetime
    refused: tuple[Answer, ...] = ()
    said: str = ""
    """What SkyPilot said of it."""


@dataclass(frozen=True)
class Refused:
    """None of the places had a machine."""

    refused: tuple[Answer, ...]


class Hands(Protocol):
    """What SkyPilot does for us."""

    async def places(self) -> list[Place]:
        """Every market of the task, with today's price."""

    async def launch_in(
        self, places: Sequence[Place], hours_to_preemption: float, dead_writer: str
    ) -> Up | Lost | Refused:
        """Ask for a machine, one place after the other, and start the job on it.

        The trainer is told how long a machine in the first place lives on average, and the id of the writer whose
        machine is terminated: its lease is not waited for.
        """

    async def release(self) -> None:
        """Give the machine back; nothing happens if it is gone."""

    async def cloud_says_gone(self) -> bool:
        """Does the cloud say that the machine is terminated or stopped? Not if it doesn't answer."""

    async def wait(self, seconds: float, reason: str) -> None:
        """Sleep, showing why."""


class Progress(NamedTuple):
    """The last step that was new, and when."""

    attempt: int
    step: int
    since: datetime


class Conductor:
    """One run."""

    def __init__(self, store: Store, limits: Limits, hands: Hands, clock: Clock) -> None:
        self._store = store
        self._limits = limits
        self._hands = hands
        self._clock = clock
        self._diary = Diary(store, 0, clock)
        self._progress: Progress | None = None
        self._dead_writer = ""
        self._places: list[Place] = []
        self._read: dict[str, Event] = {}
        self._unwritten: list[Event] = []
        self._writing = threading.Lock()
        self._noted_at = datetime.min.replace(tzinfo=UTC)

    # --- finding a machine ------------------------------------------------------------------------

    async def launch(self) -> float:
        """The first machine of a job, see `place`.

        What the diary says of an earlier job of this run is over with it. `notus-launch` has noted that, and plain
        `sky jobs launch` has not: a restart of the controller would then take an old end for this job's.
        """
        if _last_turn(await self._events()) != "planned":
            await self._note(Planned(strategy="NOTUS"))
        return await self.place()

    async def place(self) -> float:
        """Find a machine for the job, for as long as it takes; returns the job's start. Raises `LimitReached`."""
        lost = 0
        while True:
            await self._obey_a_stop()
            action = await self._choose(replace(await self._observe(await self._events()), running=None))
            if isinstance(action, GiveUp):
                await self._note(Stopped(reason=action.reason, limit=action.limit, step=0))
                raise LimitReached(f"stopped, its state is saved: {action.reason}", _hint(action))
            if isinstance(action, Wait):
                await self._hands.wait(action.hours * 3600, action.reason)
                continue
            assert isinstance(action, Launch), action
            first = str(action.places[0])
            await self._note(Decided(action="launch", cause=action.cause, reason=action.reason, first=first))
            life_h = self._expected_life_h(action.places[0])
            answer = await self._hands.launch_in(action.places, life_h, self._dead_writer)
            if answer.refused:
                await self._note_refused(answer.refused)
            if isinstance(answer, Refused):
                continue
            place = self._limits.priced(answer.place)
            await self._note(MachineUp(place=place_data(place), since=answer.since))
            if isinstance(answer, Up):
                return answer.submitted_at
            await self._note(MachineGone(why="preempted", place=place_data(answer.place), said=answer.said))
            lost += 1
            if lost > 1:  # not bad luck any more: SkyPilot's own pause, so that a broken start isn't paid without end
                await self._hands.wait(LOST_WAIT_S, f"{lost} machines were lost before they ran the job")

    async def _note_refused(self, refused: Sequence[Answer]) -> None:
        noted = NoCapacity(
            places=tuple(place_data(answer.place) for answer in refused),
            answers=tuple(answer.said for answer in refused),
            reasons=tuple(dict.fromkeys(answer.said for answer in refused if answer.said)),
        )
        await self._note(noted)

    async def recover(self) -> float:
        """After the job's end with exit code 75, or after SkyPilot has lost the machine. Raises `LimitReached`."""
        events = await self._events()
        if _is_over(events):  # the controller slept through the job's end, and the machine went by itself
            await self._hands.release()
            raise LimitReached(f"nothing to recover: the run is {_last_turn(events)}", "launch it again to go on")
        spell = machine_now(machines(events))
        attempt = None
        if spell is not None:
            if await self._is_alive(spell):
                await self._note(FalseRecovery(place=place_data(spell.place)))
                return self._clock.now().timestamp()
            events = await self._events()
            attempt = _attempt_on(spell, events)
            await self._note(MachineGone(why=why_gone(events, spell.since), place=place_data(spell.place)))
        await self._hands.release()
        self._dead_writer = await asyncio.to_thread(self._writer_of, attempt)
        return await self.place()

    async def close(self, why: GoneCause, job_status: str = "") -> None:
        """The job is over: so is its machine, also where nobody has written that. `job_status` is SkyPilot's."""
        if (spell := machine_now(machines(await self._events()))) is not None:
            await self._note(MachineGone(why=why, place=place_data(spell.place), job_status=job_status))

    async def _obey_a_stop(self) -> None:
        """A stop that nobody has seen yet ends the run before another machine is paid. Raises `LimitReached`."""
        request = await asyncio.to_thread(read_request, self._store)
        if request is None or request.action != "stop":
            return
        await self._note(Stopped(reason=request.reason, limit=request.limit, step=0))
        await asyncio.to_thread(withdraw, self._store)
        raise LimitReached(f"stopped: {request.reason}", "launch the same --name again to go on")

    async def _is_alive(self, spell: MachineSpell) -> bool:
        """SkyPilot takes a node for dead that it can't reach: a live trainer goes on beating in the bucket.

        One failed probe of a node that its cloud calls up is enough for SkyPilot (skypilot#10162). So its trainer's
        word counts, and the cloud's only where it says that the machine is gone: one that lives on without its cloud's
        knowledge is a zombie.
        """
        attempt = _attempt_on(spell, await self._events())
        if attempt is None or await self._hands.cloud_says_gone():
            return False
        before = await asyncio.to_thread(self._heartbeat)
        if before is None or before.attempt != attempt:
            return False
        if self._clock.now() - before.time > timedelta(seconds=10 * BEAT_WAIT_S):
            return False
        await asyncio.to_thread(self._clock.sleep, BEAT_WAIT_S)
        after = await asyncio.to_thread(self._heartbeat)
        return after is not None and after.attempt == attempt and after.time > before.time

    # --- looking after it -------------------------------------------------------------------------

    async def look(self) -> bool:
        """One look at the running job: ask it to move or stop where the policy wants it; False = the run is over."""
        events = await self._events()
        spell = machine_now(machines(events))
        if spell is None:
            return not _is_over(events)
        action = await self._choose(await self._observe(events))
        await self._watch_progress(await asyncio.to_thread(self._heartbeat), spell)
        if isinstance(action, Move | GiveUp):
            await self._ask(action)
        return True

    async def _ask(self, action: Move | GiveUp) -> None:
        """Leave the wish in the bucket; the trainer saves and ends. Said once to each attempt."""
        head = await asyncio.to_thread(read_head, self._store)
        epoch = head.epoch if head else 0
        what: Literal["move", "stop"] = "move" if isinstance(action, Move) else "stop"
        standing = await asyncio.to_thread(read_request, self._store)
        if standing is not None and standing.action == what and standing.is_for(epoch):
            waited_s = (self._clock.now() - standing.time).total_seconds()
            if waited_s > self._patience_s(action):
                # Nobody obeys: a set-up that hangs, or a dead supervisor. Money, and a deadline, go before the unsaved
                # steps. SkyPilot finds the machine gone, and calls `recover`.
                await self.close("budget" if what == "stop" else "hung")
                await self._hands.release()
            return
        limit = action.limit if isinstance(action, GiveUp) else None
        cause = action.limit if isinstance(action, GiveUp) else action.cause
        await self._note(Decided(action=what, cause=cause, reason=action.reason))
        await asyncio.to_thread(ask, self._store, what, epoch, action.reason, self._clock, limit)

    def _patience_s(self, action: Move | GiveUp) -> float:
        """For a trainer that was asked. A deadline has slack for one restart beyond the move's own."""
        if isinstance(action, GiveUp):
            return DEAF_S
        return max(60.0, min(DEAF_S, DEAF_SHARE * self._limits.restart_h * 3600)) if action.urgent else math.inf

    async def _watch_progress(self, beat: Heartbeat | None, spell: MachineSpell) -> None:
        """No new step for long is an alarm, also where no attempt has begun: a set-up may hang."""
        now = self._clock.now()
        attempt, step = (beat.attempt, beat.step) if beat else (0, 0)
        last = self._progress
        if last is None or (attempt, step) != (last.attempt, last.step):
            last = self._progress = Progress(attempt, step, now if beat else spell.since)
        if (now - last.since).total_seconds() > NO_PROGRESS_S:
            stuck_s = round((now - last.since).total_seconds())
            await self._note(Alarm(step=step, phase=beat.phase if beat else "set-up", stuck_s=stuck_s))
            self._progress = last._replace(since=now)

    # --- what is known ----------------------------------------------------------------------------

    async def _choose(self, seen: Observation) -> Action:
        """Not on the event loop: it is every job's, and a new table of the policy takes a second."""
        action = await asyncio.to_thread(decide, seen, self._limits.settings)
        logger.debug("notus: saw %s", seen)
        logger.info("notus: %s", action)
        return action

    async def _observe(self, events: list[Event]) -> Observation:
        if not self._places:
            self._places = [self._limits.priced(place) for place in await self._hands.places()]
        beat = await asyncio.to_thread(self._heartbeat)
        return observe(events, beat, self._places, self._limits, self._clock.now())

    def _expected_life_h(self, place: Place) -> float:
        return hours_to_preemption(self._known_events(), self._places, self._limits, self._clock.now(), place)

    async def _events(self) -> list[Event]:
        """The diary. Its objects never change, so each is read once."""
        await asyncio.to_thread(self._write_down)
        for event in await asyncio.to_thread(read_events, self._store, lambda key: key not in self._read):
            self._read[event.key] = event
        return self._known_events()

    def _known_events(self) -> list[Event]:
        """As of the last look."""
        return sorted(self._read.values(), key=lambda event: (event.time, event.id))

    def _writer_of(self, attempt: int | None) -> str:
        """Who holds the run, if it is this attempt; '' where nobody says."""
        try:
            head = read_head(self._store) if attempt is not None else None
        except NotusError:  # its successor then waits for the lease, as ever
            return ""
        return head.writer.id if head is not None and head.epoch == attempt else ""

    def _heartbeat(self) -> Heartbeat | None:
        return read_heartbeat(self._store)

    async def _note(self, payload: Payload) -> None:
        """A machine that is up must not be lost, or asked for twice, because the diary could not be written.

        What can't be written is known here all the same, and written later.
        """
        event = self._diary.compose(payload)
        if event.time <= self._noted_at:  # a machine that came and went at once: the order must stay
            event = event.model_copy(update={"time": self._noted_at + timedelta(microseconds=1)})
        self._noted_at = event.time
        self._read[event.key] = event
        self._unwritten.append(event)
        try:
            await asyncio.to_thread(self._write_down)
        except NotusError as error:
            logger.warning("notus: could not note %r yet: %s", event.kind, error.message)

    def _write_down(self) -> None:
        """Not on the event loop: it is every job's, and a bucket that is away takes minutes.

        One thread at a time: the timer's look goes on while a machine is looked for, and each has a thread.
        """
        with self._writing:
            while self._unwritten:
                self._diary.append(self._unwritten[0])
                self._unwritten.pop(0)


def _attempt_on(spell: MachineSpell, events: Sequence[Event]) -> int | None:
    """The attempt that this machine began, unless it has ended."""
    begun = [event.attempt for event, _ in of_kind(events, AttemptStarted) if event.time >= spell.since]
    ended = {event.attempt for event, _ in of_kind(events, AttemptEnded)}
    return begun[-1] if begun and begun[-1] not in ended else None


def _is_over(events: Sequence[Event]) -> bool:
    return _last_turn(events) in RUN_ENDS


def _last_turn(events: Sequence[Event]) -> str:
    turns = [event.kind for event in events if isinstance(event.payload, RunEnd | Planned | MachineUp | AttemptStarted)]
    return turns[-1] if turns else ""


def _hint(action: GiveUp) -> str:
    if action.limit == "budget":
        return "raise --budget and launch the same --name again: it goes on where it was"
    return "add a --cloud or other --gpus"
