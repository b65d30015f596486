"""Executes the policy's decisions: requests machines, records the results in the run's diary, requests moves.

It uses SkyPilot only through `CloudApi`, so that tests can use a fake. All its state is in the diary; what it has read
is enough to keep the limits while the bucket is unavailable. A machine is recorded as gone only after SkyPilot has
released it and its cloud no longer reports it: until then it is billed.
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
from launcher.policy.safety import can_afford_start, must_be_safe, still_binds
from launcher.sky.strategy.cloud_api import CloudApi, LaunchParams, LimitReached, Lost, Refused, Up
from launcher.sky.strategy.give_back import release_machine, release_until_gone
from launcher.sky.strategy.life_signs import LifeSigns
from launcher.sky.strategy.newest_launch import (
    attempt_now,
    is_noted_as_gone,
    is_planned,
    release_due,
    since_machine,
    was_decided,
)
from launcher.sky.strategy.patience import UNRESPONSIVE_S, patience_s, request_s
from launcher.sky.strategy.run_events import RunDiary

__all__ = ["CloudApi", "LaunchParams", "LimitReached", "Lost", "Refused", "RunController", "Up"]

logger = logging.getLogger("sky.notus")
"""Below "sky", so that our messages are in the job's controller log."""

T = TypeVar("T")
BEAT_WAIT_S = 12.0
"""A live trainer writes a heartbeat every 5 s."""
LOST_WAIT_S = 60.0
"""Pause before the next machine if two in a row were gone before they ran the job."""
SAME_PRICE = 0.001


@dataclass(frozen=True)
class PendingRequest:
    """A request to the trainer on a machine, and since when (monotonic seconds)."""

    what: Literal["move", "stop"]
    why: GoneCause
    machine: MachineSpell
    since_s: float
    sent: bool = False


class RunController:
    """The controller of one run."""

    def __init__(
        self, store: Store, limits: Limits, cloud_api: CloudApi, clock: Clock, launch: int = 0, job: str = ""
    ) -> None:
        self._store = store
        self._limits = limits
        self._cloud_api = cloud_api
        self._clock = clock
        self._diary = RunDiary(store, clock, launch, job)
        self._signs = LifeSigns(clock)
        self._dead_writer = ""
        self._places: list[Place] = []
        self._beat: Heartbeat | None = None
        self._beat_is_current = False
        self._begun = False
        self._searching = False
        """Is a search for a machine active? SkyPilot has the machine before we see it."""
        self._pending: PendingRequest | None = None
        self._untrained: datetime | None = None
        """Request time of the newest machine that we saw before its first step."""
        self._stop_seen: tuple[str, float] | None = None
        """The user's pending stop request, and when we first saw it."""

    # --- finding a machine ------------------------------------------------------------------------

    async def launch(self) -> float:
        """Find the first machine of a job, see `place`.

        Events of the run's earlier jobs no longer apply. `notus-launch` has recorded a new plan, but plain `sky jobs
        launch` has not: a restarted controller would then take an old end for this job's.
        """
        if not self._begun:  # else it was called again because the bucket didn't answer during the search
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
            await self._honor_stop_request()
            events = await self._read_unless_urgent()
            await self._refuse_if_superseded(events)
            seen = await self._without_machine(events)
            action = await self._choose(seen)
            if isinstance(action, GiveUp):
                await self._diary.note(Stopped(reason=action.reason, limit=action.limit, step=0))
                raise LimitReached(f"stopped with its state saved: {action.reason}", _hint(action))
            if isinstance(action, Wait):
                await self._cloud_api.wait(action.hours * 3600, action.reason)
                continue
            assert isinstance(action, Launch), action
            answer = await self._ask_for(action, seen, events)
            if isinstance(answer, Refused):
                continue
            up = MachineUp(
                place=place_data(self._limits.priced(answer.place)),
                since=answer.since,
                after_attempt=newest_attempt(events),
                reserve=seen.budget_left_usd is not None and can_afford_start(seen, answer.place, seen.places),
            )
            await self._diary.note(up)
            if isinstance(answer, Up):
                return answer.submitted_at
            await self._release_until_gone("preempted" if answer.taken else "never_ran", answer.message)
            lost += 1
            if lost > 1:  # not just bad luck: pause like SkyPilot, so that a broken start isn't paid for endlessly
                await self._cloud_api.wait(LOST_WAIT_S, f"{lost} machines were lost before they ran the job")

    async def _without_machine(self, events: list[Event]) -> Observation:
        """The observation without a machine, even if the diary has one: uncommitted steps are lost."""
        seen = await self._observe(events, await self._heartbeat(events), Signs())
        left_h = seen.work_left_h + seen.unsaved_h
        return replace(seen, running=None, work_left_h=left_h, unsaved_h=0.0)

    async def _ask_for(self, action: Launch, seen: Observation, events: list[Event]) -> Up | Lost | Refused:
        first = action.places[0]
        decided = Decided(action="launch", cause=action.cause, reason=action.reason, first=str(first))
        await self._diary.note(decided)
        now = self._clock.now()
        params = LaunchParams(
            hours_to_preemption=hours_to_preemption(events, self._places, self._limits, now, first),
            dead_writer=self._dead_writer,
            spent_usd=paid_usd(machines(events), self._limits, now),
            price_usd_per_hour=max(place.price_usd_per_hour for place in action.places),
            most_s=request_s(seen, action.places),
        )
        answer = await self._cloud_api.launch_in(action.places, params)
        if answer.refused:
            noted = NoCapacity(
                places=tuple(place_data(one.place) for one in answer.refused),
                answers=tuple(one.message for one in answer.refused),
                reasons=tuple(dict.fromkeys(one.message for one in answer.refused if one.message)),
            )
            await self._diary.note(noted)
        return answer

    async def recover(self) -> float:
        """Recover after exit code 75, or after SkyPilot has lost the machine. Raises `LimitReached`."""
        events = await self._read_unless_urgent()
        await self._refuse_if_superseded(events)
        if (end := end_of_run(events)) is not None:  # the controller missed the job's end
            await self._release_until_gone("closed")
            raise LimitReached(f"nothing to recover: the run is {end.kind}", "launch it again to resume")
        spell = machine_now(machines(events))
        attempt = None
        why: GoneCause = "unknown"
        if spell is not None:
            gone = await self._cloud_api.cloud_says_gone()
            if not gone and await self._unless_urgent(lambda: self._is_alive(events)):
                await self._diary.note(FalseRecovery(place=place_data(spell.place)))
                return self._clock.now().timestamp()
            events = await self._read_unless_urgent()
            attempt = attempt_now(events)
            why = self._why_gone(events, gone)
        await self._release_until_gone(why)
        self._dead_writer = await asyncio.to_thread(self._writer_of, attempt)
        return await self.place()

    async def _read_unless_urgent(self) -> list[Event]:
        """All events, or those read so far if the bucket doesn't answer and the deadline can't wait for it."""
        events = await self._unless_urgent(self._diary.read)
        return self._diary.known() if events is None else events

    async def _unless_urgent(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Call the bucket; None if it doesn't answer and the deadline can't wait for it. Raises `NotusError`.

        Without a machine, waiting costs only time. If there is too little time, we use what has been read so far.
        """
        try:
            return await ask()
        except LimitReached:
            raise
        except NotusError as error:
            if not self._diary.was_read or not await self._is_urgent():
                raise
            logger.warning(
                "notus: the deadline can't wait for the bucket; using the last known state: %s", error.message
            )
            return None

    async def _is_urgent(self) -> bool:
        seen = await self._without_machine(self._diary.known())
        return must_be_safe(seen, self._limits.settings) and still_binds(seen)

    def _is_superseded(self, events: Sequence[Event]) -> bool:
        """Has the run been launched again? Then this launch's machine is no longer needed."""
        return 0 < self._diary.launch < max((event.launch for event in events), default=0)

    async def _refuse_if_superseded(self, events: Sequence[Event]) -> None:
        """Stop if the run was launched again, so that two machines aren't paid for. Raises `LimitReached`."""
        if self._is_superseded(events):
            await self._release_until_gone("closed")
            raise LimitReached("the run was launched again, so this job ends", "see: notus-launch status")

    def _why_gone(self, events: list[Event], gone: bool) -> GoneCause:
        """Why a machine is gone. If its cloud still has it and no attempt ended, it did not run the job or hangs."""
        spells = machines(events)
        its_events = on_machine(events, spells, len(spells) - 1)
        ran = gone or bool(of_kind(its_events, AttemptStarted))
        why = why_gone(its_events, ran=ran)
        moves = [decided for _, decided in of_kind(since_machine(events), Decided) if decided.action == "move"]
        return "no_progress" if why == "moved" and moves and moves[-1].cause == "progress" else why

    # --- releasing a machine ----------------------------------------------------------------------

    async def close(self, why: GoneCause, job_status: str = "") -> bool:
        """Release the machine of a job that is over. False = it could not be released; try again."""
        return await self._release_machine(why, job_status)

    async def _release_machine(self, why: GoneCause, job_status: str = "") -> bool:
        self._pending = None
        return await release_machine(self._cloud_api, self._diary, why, job_status=job_status)

    async def _release_until_gone(self, why: GoneCause, message: str = "") -> None:
        self._pending = None
        await release_until_gone(self._cloud_api, self._diary, why, message)

    # --- watching it ------------------------------------------------------------------------------

    async def look(self) -> bool:
        """Check the running job once, and request a move or stop if the policy wants it; False = the run is over.

        Uses the last known state if the bucket doesn't answer. Raises `NotusError` if nothing is known yet.
        """
        events = await self._diary.read_if_there()
        if self._is_superseded(events):  # SkyPilot then finds no machine, and calls `recover`
            if not is_noted_as_gone(events):
                await self._release_machine("closed")
            return True
        spell = machine_now(machines(events))
        if spell is None:
            if end_of_run(events) is not None:
                return False
            await self._record_lost_machine(events)
            return True
        if (failed := release_due(events)) is not None:
            await self._release_machine(failed.why)
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
        await self._write_beat(len(works), spell)  # only after it could decide: the machine relies on that
        if isinstance(action, Move | GiveUp):
            await self._ask(action, spell, seen)
        else:
            await self._enforce_stop(seen)
        return True

    async def _record_lost_machine(self, events: list[Event]) -> None:
        """Record a machine that is billed but missing from the diary.

        It came while the bucket was unavailable, and the process that would have recorded it later is gone.
        """
        machine = None if self._searching else await self._cloud_api.machine()
        if machine is not None and self._diary.is_current and not _is_recorded(machine, machines(events)):
            place, since = machine
            # Uses another machine's clock because nothing else is available: an error only makes this machine seem to
            # have trained already, or not yet.
            begun = [event.attempt for event, _ in of_kind(events, AttemptStarted) if event.time < since]
            record = place_data(self._limits.priced(place))
            await self._diary.note(MachineUp(place=record, since=since, after_attempt=max(begun, default=0)))

    async def _write_beat(self, launches: int, spell: MachineSpell) -> None:
        """Write the controller's heartbeat and the price: without it, the machine enforces the limits itself."""
        price, now = spell.usd_per_hour, self._clock.now()
        try:
            await asyncio.to_thread(write_controller_beat, self._store, now, launches, price)
        except NotusError as error:
            logger.warning("notus: the controller's heartbeat could not be written: %s", error.message)

    async def _note_start(self, work: MachineWork) -> None:
        """Record how long a machine's start took.

        It is measured by our clock if we checked before the machine's first step. Otherwise it is the smaller of that,
        which is too long, and the time by the machine's clock, which may be off.
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
        # No machine is rented at a price that looks wrong, but the price of a rented machine may be right.
        listed = max(billed, self._cloud_api.listed_usd(spell.place) or 0.0) if trusted is None else trusted
        if abs(listed - billed) > SAME_PRICE * billed:
            place = replace(self._limits.priced(spell.place), price_usd_per_hour=listed)
            await self._diary.note(PriceChanged(place=place_data(place)))

    async def _ask(self, action: Move | GiveUp, spell: MachineSpell, seen: Observation) -> None:
        """Leave the request in the bucket, once per machine; the trainer saves and ends.

        Money, a deadline and a hang matter more than unsaved steps: a trainer that doesn't respond in time, or that
        can't be reached, loses its machine. SkyPilot finds it gone, and calls `recover`.
        """
        what: Literal["move", "stop"] = "move" if isinstance(action, Move) else "stop"
        if self._pending is None or (self._pending.what, self._pending.machine.since) != (what, spell.since):
            self._pending = PendingRequest(what, _release_cause(action), spell, self._clock.monotonic())
            cause = action.limit if isinstance(action, GiveUp) else action.cause
            if not was_decided(self._diary.known(), what):  # by an earlier process
                await self._diary.note(Decided(action=what, cause=cause, reason=action.reason))
        if not self._pending.sent:
            await self._send(action)
        if self._clock.monotonic() - self._pending.since_s >= patience_s(action, seen, self._limits.settings.check_h):
            await self._release_machine(self._pending.why)

    async def _send(self, action: Move | GiveUp) -> None:
        assert self._pending is not None
        try:
            head = await asyncio.to_thread(read_head, self._store)
            epoch = head.epoch if head else 0
            limit = action.limit if isinstance(action, GiveUp) else None
            what = self._pending.what
            standing = await asyncio.to_thread(read_request, self._store)
            if standing is None or standing.action != what or not standing.is_for(epoch):
                await asyncio.to_thread(ask, self._store, what, epoch, action.reason, self._clock, limit)
        except NotusError as error:
            logger.warning("notus: the request to the trainer could not be written yet: %s", error.message)
            return
        self._pending = replace(self._pending, sent=True)

    async def _enforce_stop(self, seen: Observation) -> None:
        """End the run if the trainer doesn't respond to the user's stop request."""
        request = await self._request()
        if request is None or request.action != "stop":
            self._stop_seen = None
            return
        if self._stop_seen is None or self._stop_seen[0] != request.id:
            self._stop_seen = request.id, self._clock.monotonic()
        limit_s = max(UNRESPONSIVE_S, seen.closing_h * 3600)
        if self._clock.monotonic() - self._stop_seen[1] >= limit_s and await self._release_machine("stopped"):
            await self._end_as_requested(request)

    async def _request(self) -> Request | None:
        try:
            return await asyncio.to_thread(read_request, self._store)
        except NotusError:  # read again at the next check
            return None

    async def _honor_stop_request(self) -> None:
        """End the run before another machine is paid for, if a stop was requested. Raises `LimitReached`."""
        request = await self._unless_urgent(lambda: asyncio.to_thread(read_request, self._store))
        if request is None or request.action != "stop":
            return
        await self._end_as_requested(request)
        raise LimitReached(f"stopped: {request.reason}", "launch the same --name again to resume")

    async def _end_as_requested(self, request: Request) -> None:
        await self._diary.note(Stopped(reason=request.reason, limit=request.limit, step=0))
        await asyncio.to_thread(withdraw, self._store)

    async def _is_alive(self, events: list[Event]) -> bool:
        """Is the trainer alive although SkyPilot can't reach its node? Then its heartbeat in the bucket changes.

        SkyPilot gives up a node after one failed probe, even if its cloud reports it as up (skypilot#10162). So the
        heartbeat counts, unless the cloud reports the machine as gone: then it is a zombie. Only a change counts;
        another machine's clock is never compared with ours.
        """
        attempt = attempt_now(events)
        before = await asyncio.to_thread(read_heartbeat, self._store) if attempt is not None else None
        if before is None or before.attempt != attempt:
            return False
        await asyncio.to_thread(self._clock.sleep, BEAT_WAIT_S)
        after = await asyncio.to_thread(read_heartbeat, self._store)
        return after is not None and after.attempt == attempt and after != before

    # --- observing --------------------------------------------------------------------------------

    async def _choose(self, seen: Observation) -> Action:
        """Decide in a thread: all jobs share the event loop, and a new policy table takes a second."""
        action = await asyncio.to_thread(decide, seen, self._limits.settings)
        logger.debug("notus: observed %s", seen)
        logger.info("notus: %s", action)
        return action

    async def _observe(self, events: list[Event], beat: Heartbeat | None, signs: Signs) -> Observation:
        places = await self._known_places(events)
        return observe(events, beat, places, self._limits, self._clock.now(), signs)

    async def _known_places(self, events: list[Event]) -> list[Place]:
        """The current places, else those of an earlier check, else the one that the run is in.

        The last is enough to keep the run's limits, but not to request another machine. Raises `NotusError`.
        """
        spell = machine_now(machines(events))
        here = [spell.place] if spell is not None else []
        try:
            current = await self._cloud_api.places()
        except NotusError as error:
            if not self._places and not here:
                raise
            logger.warning("notus: no prices can be read; using the last known ones: %s", error.message)
            current = []
        self._places = [self._limits.priced(place) for place in current] or self._places
        if not self._places and not here and machines(events):  # the run had a machine, so the list must be broken
            raise UserError("the current price list has no offer for this run", "it will be read again")
        return self._places or here

    async def _heartbeat(self, events: list[Event]) -> Heartbeat | None:
        """The newest heartbeat that could be read, if it comes from an attempt on the current machine."""
        self._beat_is_current = False
        try:
            self._beat = await asyncio.to_thread(read_heartbeat, self._store)
            self._beat_is_current = True
        except NotusError:
            logger.debug("notus: no heartbeat could be read", exc_info=True)
        return beat_on_machine(self._beat, events, machines(events))

    def _writer_of(self, attempt: int | None) -> str:
        """The id of the run's holder, if it is this attempt; '' if not, or not known."""
        try:
            head = read_head(self._store) if attempt is not None else None
        except NotusError:  # its successor then waits for the lease, as usual
            return ""
        return head.writer.id if head is not None and head.epoch == attempt else ""


def _is_recorded(machine: tuple[Place, datetime], spells: Sequence[MachineSpell]) -> bool:
    """Is SkyPilot's machine the newest in the diary? It may have ended there seconds before SkyPilot sees it."""
    place, since = machine
    newest = spells[-1] if spells else None
    return newest is not None and newest.place == place and (newest.until is None or since < newest.until)


def _release_cause(action: Move | GiveUp) -> GoneCause:
    """The recorded cause for a machine whose trainer did not respond."""
    if isinstance(action, GiveUp):
        return "budget"
    return "no_progress" if action.cause == "progress" else "hung"


def _hint(action: GiveUp) -> str:
    match action.limit:
        case "budget":
            return "raise --budget and launch the same --name again to resume"
        case "progress":
            return "see why with `notus-launch logs` and `status`; launch the same --name again to resume"
    return "add a --cloud or other --gpus"
