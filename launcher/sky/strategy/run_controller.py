"""Carries out what the policy says: asks for machines, notes in the run's diary what became of it, asks for moves.

Knows SkyPilot only as `Hands`, so that tests conduct a fake one. Everything that it has to remember is in the diary;
what it knows already is enough to keep the limits while the bucket is away. A machine is noted as gone only once
SkyPilot has given it back and its cloud doesn't know it any more: until then it is billed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeVar

from checkpoints.commit.head import read_head
from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.causes import GoneCause
from checkpoints.run_log.event_kinds import (
    AttemptStarted,
    Decided,
    FalseRecovery,
    MachineUp,
    NoCapacity,
    Planned,
    PriceChanged,
    Stopped,
    UnderWay,
)
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.event_order import end_of_run
from checkpoints.run_log.run_record import Heartbeat, read_heartbeat, write_controller_beat
from checkpoints.run_log.stop_request import Request, ask, read_request, withdraw
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock
from launcher.policy.decide import decide
from launcher.policy.limits import Limits
from launcher.policy.machine_work import MachineWork, machine_works
from launcher.policy.model import Action, GiveUp, Launch, Move, Observation, Place, Wait
from launcher.policy.observe import Signs, hours_to_preemption, observe, paid_usd
from launcher.policy.run_history import (
    MachineSpell,
    beat_on_machine,
    hours_of,
    machine_now,
    machines,
    newest_attempt,
    on_machine,
    place_data,
    why_gone,
)
from launcher.policy.safety import bears_a_start, must_be_safe, still_binds
from launcher.sky.strategy.cloud_api import Hands, LimitReached, Lost, Refused, Told, Up
from launcher.sky.strategy.give_back import give_back, give_back_surely
from launcher.sky.strategy.life_signs import LifeSigns
from launcher.sky.strategy.newest_launch import (
    attempt_now,
    is_noted_as_gone,
    is_planned,
    release_due,
    since_machine,
    was_decided,
)
from launcher.sky.strategy.patience import DEAF_S, patience_s, request_s
from launcher.sky.strategy.run_events import RunDiary

__all__ = ["Conductor", "Hands", "LimitReached", "Lost", "Refused", "Told", "Up"]

logger = logging.getLogger("sky.notus")
"""Below "sky", so that what we say is in the job's controller log."""

T = TypeVar("T")
BEAT_WAIT_S = 12.0
"""A live trainer's heartbeat comes every 5 s."""
LOST_WAIT_S = 60.0
"""Before the next machine, where two in a row were gone before they ran the job."""
SAME_PRICE = 0.001


@dataclass(frozen=True)
class Wish:
    """What the trainer on a machine was asked to do, and since when (monotonic seconds)."""

    what: Literal["move", "stop"]
    why: GoneCause
    machine: MachineSpell
    since_s: float
    sent: bool = False


class Conductor:
    """One run."""

    def __init__(
        self, store: Store, limits: Limits, hands: Hands, clock: Clock, launch: int = 0, job: str = ""
    ) -> None:
        self._store = store
        self._limits = limits
        self._hands = hands
        self._clock = clock
        self._diary = RunDiary(store, clock, launch, job)
        self._signs = LifeSigns(clock)
        self._dead_writer = ""
        self._places: list[Place] = []
        self._beat: Heartbeat | None = None
        self._beat_is_current = False
        self._begun = False
        self._searching = False
        """Is a machine being looked for? SkyPilot knows of it before we do."""
        self._wish: Wish | None = None
        self._untrained: datetime | None = None
        """When the newest machine that we have seen without a first step was asked for."""
        self._told_to_stop: tuple[str, float] | None = None
        """A user's stop that stands, and since when we know it."""

    # --- finding a machine ------------------------------------------------------------------------

    async def launch(self) -> float:
        """The first machine of a job, see `place`.

        What the diary says of an earlier job of this run is over with it. `notus-launch` has noted that, and plain
        `sky jobs launch` has not: a restart of the controller would then take an old end for this job's.
        """
        if not self._begun:  # else it was called again, because the bucket didn't answer while a machine was looked for
            planned = is_planned(await self._diary.read_before_launch())
            await self._diary.begin()
            if not planned:
                await self._diary.note(Planned(strategy="NOTUS"))
            self._begun = True
        return await self.place()

    async def place(self) -> float:
        """Find a machine for the job; returns the job's start. Raises `LimitReached`, `NotusError` (the bucket)."""
        self._searching = True
        try:
            return await self._search()
        finally:
            self._searching = False

    async def _search(self) -> float:
        lost = 0
        while True:
            await self._obey_a_stop()
            events = await self._read_unless_pressed()
            await self._refuse_if_superseded(events)
            seen = await self._without_machine(events)
            action = await self._choose(seen)
            if isinstance(action, GiveUp):
                await self._diary.note(Stopped(reason=action.reason, limit=action.limit, step=0))
                raise LimitReached(f"stopped, its state is saved: {action.reason}", _hint(action))
            if isinstance(action, Wait):
                await self._hands.wait(action.hours * 3600, action.reason)
                continue
            assert isinstance(action, Launch), action
            answer = await self._ask_for(action, seen, events)
            if isinstance(answer, Refused):
                continue
            up = MachineUp(
                place=place_data(self._limits.priced(answer.place)),
                since=answer.since,
                after_attempt=newest_attempt(events),
                reserve=seen.budget_left_usd is not None and bears_a_start(seen, answer.place, seen.places),
            )
            await self._diary.note(up)
            if isinstance(answer, Up):
                return answer.submitted_at
            await self._give_back_surely("preempted" if answer.taken else "never_ran", said=answer.said)
            lost += 1
            if lost > 1:  # not bad luck any more: SkyPilot's own pause, so that a broken start isn't paid without end
                await self._hands.wait(LOST_WAIT_S, f"{lost} machines were lost before they ran the job")

    async def _without_machine(self, events: list[Event]) -> Observation:
        """What is seen when the run has no machine, whatever the diary says: steps that were not committed are lost."""
        seen = await self._observe(events, await self._heartbeat(events), Signs())
        left_h = seen.work_left_h + seen.unsaved_h
        return replace(seen, running=None, work_left_h=left_h, unsaved_h=0.0)

    async def _ask_for(self, action: Launch, seen: Observation, events: list[Event]) -> Up | Lost | Refused:
        first = action.places[0]
        decided = Decided(action="launch", cause=action.cause, reason=action.reason, first=str(first))
        await self._diary.note(decided)
        now = self._clock.now()
        told = Told(
            hours_to_preemption=hours_to_preemption(events, self._places, self._limits, now, first),
            dead_writer=self._dead_writer,
            spent_usd=paid_usd(machines(events), self._limits, now),
            price_usd_per_hour=max(place.price_usd_per_hour for place in action.places),
            most_s=request_s(seen, action.places),
        )
        answer = await self._hands.launch_in(action.places, told)
        if answer.refused:
            noted = NoCapacity(
                places=tuple(place_data(one.place) for one in answer.refused),
                answers=tuple(one.said for one in answer.refused),
                reasons=tuple(dict.fromkeys(one.said for one in answer.refused if one.said)),
            )
            await self._diary.note(noted)
        return answer

    async def recover(self) -> float:
        """After the job's end with exit code 75, or after SkyPilot has lost the machine. Raises `LimitReached`."""
        events = await self._read_unless_pressed()
        await self._refuse_if_superseded(events)
        if (end := end_of_run(events)) is not None:  # the controller slept through the job's end
            await self._give_back_surely("closed")
            raise LimitReached(f"nothing to recover: the run is {end.kind}", "launch it again to go on")
        spell = machine_now(machines(events))
        attempt = None
        why: GoneCause = "unknown"
        if spell is not None:
            gone = await self._hands.cloud_says_gone()
            if not gone and await self._unless_pressed(lambda: self._is_alive(events)):
                await self._diary.note(FalseRecovery(place=place_data(spell.place)))
                return self._clock.now().timestamp()
            events = await self._read_unless_pressed()
            attempt = attempt_now(events)
            why = self._why_gone(events, gone)
        await self._give_back_surely(why)
        self._dead_writer = await asyncio.to_thread(self._writer_of, attempt)
        return await self.place()

    async def _read_unless_pressed(self) -> list[Event]:
        """All events; those that are known where the bucket doesn't answer and the deadline can't wait for it."""
        found = await self._unless_pressed(self._diary.read)
        return self._diary.known() if found is None else found

    async def _unless_pressed(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the bucket says; None where it doesn't answer and the deadline can't wait for it. Raises `NotusError`.

        Without a machine a wait costs nothing but time. With too little of that, what is known has to do.
        """
        try:
            return await ask()
        except LimitReached:
            raise
        except NotusError as error:
            if not self._diary.was_read or not await self._is_pressed():
                raise
            logger.warning("notus: the deadline can't wait for the bucket, so what is known decides: %s", error.message)
            return None

    async def _is_pressed(self) -> bool:
        seen = await self._without_machine(self._diary.known())
        return must_be_safe(seen, self._limits.settings) and still_binds(seen)

    def _is_superseded(self, events: Sequence[Event]) -> bool:
        """Has a newer launch the run? Then this one's machine is not wanted any more."""
        return 0 < self._diary.launch < max((event.launch for event in events), default=0)

    async def _refuse_if_superseded(self, events: Sequence[Event]) -> None:
        """The run was launched again, here or elsewhere: two machines would be paid for it. Raises `LimitReached`."""
        if self._is_superseded(events):
            await self._give_back_surely("closed")
            raise LimitReached("the run was launched again since, and this job ends for it", "see: notus-launch status")

    def _why_gone(self, events: list[Event], gone: bool) -> GoneCause:
        """A machine that its cloud still has, and on which no attempt has ended, did not run the job, or hangs."""
        spells = machines(events)
        its_events = on_machine(events, spells, len(spells) - 1)
        ran = gone or bool(of_kind(its_events, AttemptStarted))
        why = why_gone(its_events, ran=ran)
        wished = [decided for _, decided in of_kind(since_machine(events), Decided) if decided.action == "move"]
        return "no_progress" if why == "moved" and wished and wished[-1].cause == "progress" else why

    # --- giving a machine back --------------------------------------------------------------------

    async def close(self, why: GoneCause, job_status: str = "") -> bool:
        """The job is over, and so is its machine. False = it could not be given back; to be tried again."""
        return await self._give_back(why, job_status)

    async def _give_back(self, why: GoneCause, job_status: str = "") -> bool:
        self._wish = None
        return await give_back(self._hands, self._diary, why, job_status=job_status)

    async def _give_back_surely(self, why: GoneCause, said: str = "") -> None:
        self._wish = None
        await give_back_surely(self._hands, self._diary, why, said)

    # --- looking after it -------------------------------------------------------------------------

    async def look(self) -> bool:
        """One look at the running job: ask it to move or stop where the policy wants it; False = the run is over.

        Decides from what is known where the bucket doesn't answer. Raises `NotusError` if nothing is known yet.
        """
        events = await self._diary.read_if_there()
        if self._is_superseded(events):  # SkyPilot then finds no machine, and calls `recover`
            if not is_noted_as_gone(events):
                await self._give_back("closed")
            return True
        spell = machine_now(machines(events))
        if spell is None:
            return end_of_run(events) is None and await self._find_machine(events)
        if (failed := release_due(events)) is not None:
            await self._give_back(failed.why)
            return True
        works = machine_works(events)
        beat = await self._heartbeat(events)
        readable = self._diary.is_current and self._beat_is_current
        signs = self._signs.look(spell, beat, events, trained=works[-1].trained, readable=readable)
        seen = await self._observe(events, beat, signs)
        await self._note_start(works[-1])
        await self._note_price(spell, seen)
        if (alarm := self._signs.alarm()) is not None:
            await self._diary.note(alarm)
        action = await self._choose(seen)
        await self._show_life(len(works), spell)  # not before it could decide: the machine relies on that
        if isinstance(action, Move | GiveUp):
            await self._ask(action, spell, seen)
        else:
            await self._see_a_stop_through(seen)
        return True

    async def _find_machine(self, events: list[Event]) -> bool:
        """Book a machine that is billed but missing from the diary. True = the run continues.

        It came while the bucket was away, and the process that would have recorded it later is gone.
        """
        found = None if self._searching else await self._hands.machine()
        if found is not None and self._diary.is_current and not _is_in_the_books(found, machines(events)):
            place, since = found
            # By another machine's clock, for want of anything else: an error only makes this machine seem to have
            # trained already, or not yet.
            begun = [event.attempt for event, _ in of_kind(events, AttemptStarted) if event.time < since]
            record = place_data(self._limits.priced(place))
            await self._diary.note(MachineUp(place=record, since=since, after_attempt=max(begun, default=0)))
        return True

    async def _show_life(self, asked: int, spell: MachineSpell) -> None:
        """The machine keeps the limits by itself while no controller is heard of, and is told what it costs."""
        price, now = spell.usd_per_hour, self._clock.now()
        try:
            await asyncio.to_thread(write_controller_beat, self._store, now, asked, price)
        except NotusError as error:
            logger.warning("notus: the controller can't show that it lives: %s", error.message)

    async def _note_start(self, work: MachineWork) -> None:
        """Note how long a machine's start took.

        Our own clock measures it, if we looked before the machine's first step. Otherwise that clock, which measures
        too much, and the machine's, which may be off, each bound it.
        """
        spell = work.spell
        if not work.trained:
            self._untrained = spell.since
        elif spell.start_h is None:
            hours = hours_of(self._clock.now() - spell.since)
            if self._untrained != spell.since and work.start_h is not None:
                hours = min(hours, work.start_h)
            await self._diary.note(UnderWay(hours=round(hours, 4)))

    async def _note_price(self, spell: MachineSpell, seen: Observation) -> None:
        assert seen.running is not None
        billed = seen.running.place.price_usd_per_hour
        trusted = next((known.place.price_usd_per_hour for known in seen.places if known.place == spell.place), None)
        # A price that looks wrong is no reason to rent a machine. That of a machine which is rented may be right.
        listed = max(billed, self._hands.listed_usd(spell.place) or 0.0) if trusted is None else trusted
        if abs(listed - billed) > SAME_PRICE * billed:
            place = replace(self._limits.priced(spell.place), price_usd_per_hour=listed)
            await self._diary.note(PriceChanged(place=place_data(place)))

    async def _ask(self, action: Move | GiveUp, spell: MachineSpell, seen: Observation) -> None:
        """Leave the wish in the bucket; the trainer saves and ends. Said once to each machine.

        Money, a deadline and a hang go before unsaved steps: a trainer that doesn't obey in time, or that can't be
        asked, loses its machine. SkyPilot finds it gone, and calls `recover`.
        """
        what: Literal["move", "stop"] = "move" if isinstance(action, Move) else "stop"
        if self._wish is None or (self._wish.what, self._wish.machine.since) != (what, spell.since):
            self._wish = Wish(what, _why_taken(action), spell, self._clock.monotonic())
            cause = action.limit if isinstance(action, GiveUp) else action.cause
            if not was_decided(self._diary.known(), what):  # by an earlier process
                await self._diary.note(Decided(action=what, cause=cause, reason=action.reason))
        if not self._wish.sent:
            await self._send(action)
        if self._clock.monotonic() - self._wish.since_s >= patience_s(action, seen, self._limits.settings.check_h):
            await self._give_back(self._wish.why)

    async def _send(self, action: Move | GiveUp) -> None:
        assert self._wish is not None
        try:
            head = await asyncio.to_thread(read_head, self._store)
            epoch = head.epoch if head else 0
            limit = action.limit if isinstance(action, GiveUp) else None
            what = self._wish.what
            standing = await asyncio.to_thread(read_request, self._store)
            if standing is None or standing.action != what or not standing.is_for(epoch):
                await asyncio.to_thread(ask, self._store, what, epoch, action.reason, self._clock, limit)
        except NotusError as error:
            logger.warning("notus: the trainer can't be asked yet: %s", error.message)
            return
        self._wish = replace(self._wish, sent=True)

    async def _see_a_stop_through(self, seen: Observation) -> None:
        """A user's stop that the trainer doesn't obey ends the run all the same."""
        request = await self._request()
        if request is None or request.action != "stop":
            self._told_to_stop = None
            return
        if self._told_to_stop is None or self._told_to_stop[0] != request.id:
            self._told_to_stop = request.id, self._clock.monotonic()
        limit_s = max(DEAF_S, seen.closing_h * 3600)
        if self._clock.monotonic() - self._told_to_stop[1] >= limit_s and await self._give_back("stopped"):
            await self._end_as_asked(request)

    async def _request(self) -> Request | None:
        try:
            return await asyncio.to_thread(read_request, self._store)
        except NotusError:  # asked again at the next look
            return None

    async def _obey_a_stop(self) -> None:
        """A stop that no attempt has seen ends the run before another machine is paid. Raises `LimitReached`."""
        request = await self._unless_pressed(lambda: asyncio.to_thread(read_request, self._store))
        if request is None or request.action != "stop":
            return
        await self._end_as_asked(request)
        raise LimitReached(f"stopped: {request.reason}", "launch the same --name again to go on")

    async def _end_as_asked(self, request: Request) -> None:
        await self._diary.note(Stopped(reason=request.reason, limit=request.limit, step=0))
        await asyncio.to_thread(withdraw, self._store)

    async def _is_alive(self, events: list[Event]) -> bool:
        """SkyPilot takes a node for dead that it can't reach: a live trainer goes on beating in the bucket.

        One failed probe of a node that its cloud calls up is enough for SkyPilot (skypilot#10162). So its trainer's
        word counts, unless the cloud says that the machine is gone: one that lives on without its cloud's knowledge is
        a zombie. Alive is what changes; no clock of another machine is compared with ours.
        """
        attempt = attempt_now(events)
        before = await asyncio.to_thread(read_heartbeat, self._store) if attempt is not None else None
        if before is None or before.attempt != attempt:
            return False
        await asyncio.to_thread(self._clock.sleep, BEAT_WAIT_S)
        after = await asyncio.to_thread(read_heartbeat, self._store)
        return after is not None and after.attempt == attempt and after != before

    # --- what is known ----------------------------------------------------------------------------

    async def _choose(self, seen: Observation) -> Action:
        """Not on the event loop: it is every job's, and a new table of the policy takes a second."""
        action = await asyncio.to_thread(decide, seen, self._limits.settings)
        logger.debug("notus: saw %s", seen)
        logger.info("notus: %s", action)
        return action

    async def _observe(self, events: list[Event], beat: Heartbeat | None, signs: Signs) -> Observation:
        places = await self._known_places(events)
        return observe(events, beat, places, self._limits, self._clock.now(), signs)

    async def _known_places(self, events: list[Event]) -> list[Place]:
        """Today's places, else those of an earlier look, else the one that the run is in.

        The last is enough to keep the run's limits, but not to request another machine. Raises `NotusError`.
        """
        spell = machine_now(machines(events))
        here = [spell.place] if spell is not None else []
        try:
            found = await self._hands.places()
        except NotusError as error:
            if not self._places and not here:
                raise
            logger.warning("notus: no prices can be read, so what is known decides: %s", error.message)
            found = []
        self._places = [self._limits.priced(place) for place in found] or self._places
        if not self._places and not here and machines(events):  # it has had one, so this is a list that is broken
            raise UserError("today's price list has no offer for this run", "another one may: it is read again")
        return self._places or here

    async def _heartbeat(self, events: list[Event]) -> Heartbeat | None:
        """The newest one that could be read, of an attempt on the machine that is up."""
        self._beat_is_current = False
        try:
            self._beat = await asyncio.to_thread(read_heartbeat, self._store)
            self._beat_is_current = True
        except NotusError:
            logger.debug("notus: no heartbeat could be read", exc_info=True)
        return beat_on_machine(self._beat, events, machines(events))

    def _writer_of(self, attempt: int | None) -> str:
        """Who holds the run, if it is this attempt; '' if that can't be told."""
        try:
            head = read_head(self._store) if attempt is not None else None
        except NotusError:  # its successor then waits for the lease, as ever
            return ""
        return head.writer.id if head is not None and head.epoch == attempt else ""


def _is_in_the_books(found: tuple[Place, datetime], spells: Sequence[MachineSpell]) -> bool:
    """An attempt's last word ends a machine in the books, and SkyPilot takes some seconds to see it."""
    place, since = found
    newest = spells[-1] if spells else None
    return newest is not None and newest.place == place and (newest.until is None or since < newest.until)


def _why_taken(action: Move | GiveUp) -> GoneCause:
    """What is noted of a machine whose trainer did not obey."""
    if isinstance(action, GiveUp):
        return "budget"
    return "no_progress" if action.cause == "progress" else "hung"


def _hint(action: GiveUp) -> str:
    match action.limit:
        case "budget":
            return "raise --budget and launch the same --name again: it goes on where it was"
        case "progress":
            return "see why with `notus-launch logs` and `status`; launch the same --name again to go on"
    return "add a --cloud or other --gpus"
