"""Signs of life on the current machine, by this process's monotonic clock, which excludes a laptop's sleep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from checkpoints.run_log.event_kinds import Alarm
from checkpoints.run_log.event_log import Event, of_kind
from checkpoints.run_log.run_record import Heartbeat
from checkpoints.util.clock import Clock
from launcher.policy.observe import Signs
from launcher.policy.run_history import MachineSpell, committed_step, hours_of

ALARM_S = 1200.0
"""Alarm after this long without a new step: a step of a 7B model takes seconds, an evaluation minutes."""
SETUP = "set-up"


class Sign(NamedTuple):
    """The last sign of progress."""

    attempt: int
    phase: str
    step: int
    counted: tuple[int, int] = (0, 0)
    """Before the training: the phase's progress counters."""


class LifeSigns:
    """Watches one run. A restarted controller continues from the last alarm."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._machine: MachineSpell | None = None
        self._sign: Sign | None = None
        self._committed = 0
        self._new_at = self._committed_at = self._alarm_at = self._looked_at = 0.0

    def look(
        self,
        spell: MachineSpell,
        beat: Heartbeat | None,
        events: Sequence[Event],
        *,
        trained: bool,
        readable: bool = True,
    ) -> Signs:
        """Check the current machine; `beat` is the heartbeat of an attempt on it.

        If not `readable`, nothing new could be read, so time doesn't count. The machine itself detects hangs then
        (`trainer.supervisor.dead_mans_switch`).
        """
        now = self._clock.monotonic()
        if not readable:
            self._shift(now - self._looked_at)
        self._looked_at = now
        if self._machine is None or self._machine.since != spell.since:
            self._reset(spell, beat, events, now)
        sign = _sign_of(beat)
        if sign != self._sign:
            self._sign, self._new_at, self._alarm_at = sign, now, now
        committed = committed_step(events)
        if committed != self._committed or not trained:
            self._committed, self._committed_at = committed, now
        return Signs((now - self._new_at) / 3600, (now - self._committed_at) / 3600)

    def _shift(self, seconds: float) -> None:
        self._new_at += seconds
        self._committed_at += seconds
        self._alarm_at += seconds

    def alarm(self) -> Alarm | None:
        """An alarm, once per `ALARM_S` without a sign of progress."""
        now = self._clock.monotonic()
        if self._sign is None or now - self._alarm_at <= ALARM_S:
            return None
        self._alarm_at = now
        return Alarm(step=self._sign.step, phase=self._sign.phase, stuck_s=round(now - self._new_at))

    def _reset(self, spell: MachineSpell, beat: Heartbeat | None, events: Sequence[Event], now: float) -> None:
        """Start with another machine, or in a new process with an existing machine."""
        self._machine, self._sign = spell, _sign_of(beat)
        age_s = 3600 * hours_of(self._clock.now() - spell.since)
        waited_s = min(self._stuck_before_s(spell, events), age_s)
        if beat is None:  # presumably in its set-up since it was requested
            waited_s = age_s
        self._new_at = self._alarm_at = now - max(0.0, waited_s)
        self._committed, self._committed_at = committed_step(events), now

    def _stuck_before_s(self, spell: MachineSpell, events: Sequence[Event]) -> float:
        """Stuck time from this machine's last alarm, if nothing has changed since."""
        alarms = [(event, alarm) for event, alarm in of_kind(events, Alarm) if event.time >= spell.since]
        alarms = [pair for pair in alarms if pair[1].about == "progress"]
        if not alarms or self._sign is None:
            return 0.0
        event, alarm = alarms[-1]
        same = (alarm.phase, alarm.step) == (self._sign.phase, self._sign.step)
        return alarm.stuck_s + 3600 * hours_of(self._clock.now() - event.time) if same else 0.0


def _sign_of(beat: Heartbeat | None) -> Sign:
    return Sign(beat.attempt, beat.phase, beat.step, (beat.done, beat.moved)) if beat else Sign(0, SETUP, 0)
