"""The dead man's switch: the limits that a rented machine enforces by itself.

The controller decides where a run goes and when it stops. It may be on a laptop that is asleep, and then nothing
releases this machine. So the attempt itself monitors three things, and ends before they cost more than they are worth:

    budget       the cost of the run, of this machine so far, and of closing it reach the budget
    hang         no new step or phase for an hour, unless a controller monitors that; before training the limits in
                 `trainer.runtime.startup_phases`, also on the user's own machine
    bucket       no response for so long that another machine is worth a try: nothing can be saved from here

It doesn't enforce the deadline: see docs/concepts/without-a-controller.md. The decisions are pure; `machine_age_s` and
`machine_budget` read their input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from checkpoints.errors import UserError
from checkpoints.run_log.run_record import ControllerBeat
from checkpoints.util.environment import number_of
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Progress
from trainer.runtime.startup_phases import ALARM_SHARE, quiet_limit_s
from trainer.supervisor.failed_start import PRICE, conducted

BUDGET = "NOTUS_BUDGET_USD"
SPENT = "NOTUS_SPENT_USD"
"""Environment variable: what the run had cost when this machine was requested."""
SAVE_MIN = "NOTUS_SAVE_MIN"
"""Environment variable: minutes that the plan assumes for the upload of a checkpoint."""
CLUSTER = "SKYPILOT_CLUSTER_INFO"

SILENT_S = 900.0
"""A controller checks once per minute. After this long without a sign of life it is gone, or asleep."""
HANG_S = 3600.0
"""Longer than the controller's limit, which moves a run after 45 min without a step. An export takes less on the nodes
that it is meant for."""
BUCKET_AWAY_S = 2700.0
"""What isn't saved by then is worth less than the machine that can't save it."""
BILLED_BEFORE_BOOT_S = 180.0
"""From the request for a machine to the boot of its kernel; clouds start billing somewhere in between."""
SET_UP_S = 2700.0
"""Assumed age if the machine's is unknown: boot and set-up at their limits."""
ASSUMED_SAVE_S = 300.0
MOST_SAVE_MIN = 24 * 60.0
SAVE_MARGIN = 1.5
"""A save takes longer when all ranks save at once, and the step before it counts too."""
TEARDOWN_S = 120.0
"""From the end of the attempt until a controller has released the machine."""
AUTODOWN_S = 780.0
"""The same without a controller: SkyPilot's agent terminates the machine after 10 idle minutes, and checks once per
minute."""

Verdict = Literal["", "budget", "hung", "bucket away"]


@dataclass(frozen=True)
class MachineBudget:
    """What this machine may still cost."""

    budget_usd: float
    spent_usd: float
    price_usd_per_hour: float

    def reached(self, age_s: float, closing_s: float) -> bool:
        """Would closing the machine now use up the budget, or exceed it?"""
        paid_h = (BILLED_BEFORE_BOOT_S + age_s + closing_s) / 3600
        return self.spent_usd + paid_h * self.price_usd_per_hour >= self.budget_usd


def machine_budget(environment: Mapping[str, str]) -> MachineBudget | None:
    """The budget of this machine; None without a budget, or if its price is unknown. Raises `UserError`."""
    budget, price = _dollars(environment, BUDGET), _dollars(environment, PRICE)
    if not budget or not price:
        return None
    return MachineBudget(budget, _dollars(environment, SPENT) or 0.0, price)


def planned_save_s(environment: Mapping[str, str]) -> float | None:
    """Seconds that the plan assumes for a save; None if the task has no plan. Raises `UserError`."""
    minutes = number_of(environment, SAVE_MIN, None, at_least=0.0, at_most=MOST_SAVE_MIN)
    return 60 * minutes if minutes else None


def _dollars(environment: Mapping[str, str], name: str) -> float | None:
    text = environment.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{name}={text!r} is not an amount in dollars", "write a number, such as 300")
    return value


def machine_age_s(proc: Path = Path("/proc")) -> float:
    """Seconds since this machine booted; in a container, since its first process started.

    From the kernel's monotonic clock: the wall clock may be set while the machine runs.
    """
    try:
        uptime_s = float((proc / "uptime").read_text().split()[0])
        after_command = (proc / "1/stat").read_text().rpartition(")")[2].split()
        return max(0.0, uptime_s - int(after_command[19]) / os.sysconf("SC_CLK_TCK"))  # field 22: starttime
    except (OSError, ValueError, IndexError):
        return SET_UP_S


def save_limit_s(save_s: float | None, planned_s: float | None = None) -> float:
    """Seconds that a last save may take: from the measured `save_s`, else from the plan."""
    expected_s = planned_s if save_s is None else save_s
    return ASSUMED_SAVE_S if expected_s is None else SAVE_MARGIN * expected_s + 60.0


class Controller:
    """When the controller last gave a sign of life, by this machine's own clock."""

    def __init__(self, *, expected: bool, now_s: float) -> None:
        """`expected`: there should be a controller, so its silence counts from the start."""
        self._expected = expected
        self._last_beat_s = now_s
        self._beat: ControllerBeat | None = None
        self._reported = False

    def look(self, beat: ControllerBeat | None, now_s: float) -> None:
        """Update from the beat in the bucket. Not called while the bucket doesn't respond."""
        if beat is not None and beat != self._beat:
            self._beat, self._last_beat_s, self._reported, self._expected = beat, now_s, False, True

    @property
    def price_usd_per_hour(self) -> float:
        """The price of this machine as last reported by the controller; 0 = not reported."""
        return self._beat.price_usd_per_hour if self._beat is not None else 0.0

    def silent_s(self, now_s: float) -> float:
        return now_s - self._last_beat_s

    def is_watching(self, now_s: float) -> bool:
        return self._expected and self.silent_s(now_s) < SILENT_S

    def just_fell_silent(self, now_s: float) -> bool:
        """Has the controller just fallen silent? True once per silence, for an alarm."""
        if not self._expected or self._reported or self.is_watching(now_s):
            return False
        self._reported = True
        return True


def _where(progress: Progress) -> tuple[object, ...]:
    return progress.phase, progress.step, progress.done, progress.moved


class DeadMansSwitch:
    """The switch of one attempt on one machine. All times are from one monotonic clock."""

    def __init__(self, environment: Mapping[str, str], *, age_s: float, now_s: float) -> None:
        self._budget = machine_budget(environment)
        self._planned_save_s = planned_save_s(environment)
        self._rented = CLUSTER in environment
        self._booted_s = now_s - age_s
        self._moved_s = now_s
        self._last = Progress(phase="starting")
        self._alarmed = False
        self._first_step: tuple[int, float] | None = None
        self.controller = Controller(expected=conducted(environment), now_s=now_s)

    def closing_s(self, now_s: float, save_s: float | None) -> float:
        """Seconds from now until this machine is no longer billed, if the attempt ends now."""
        down_s = TEARDOWN_S if self.controller.is_watching(now_s) else AUTODOWN_S
        return self.save_limit_s(save_s) + down_s

    def save_limit_s(self, save_s: float | None) -> float:
        """Seconds that a last save may take."""
        return save_limit_s(save_s, self._planned_save_s)

    def _reaches_budget(self, progress: Progress, now_s: float) -> bool:
        """Is the budget reached?

        The price is this machine's own once the controller has reported it. Until then it is the environment's, that of
        the most expensive of the requested places. Before the first step there is nothing to save.
        """
        if self._budget is None:
            return False
        price = self.controller.price_usd_per_hour or self._budget.price_usd_per_hour
        closing_s = self.closing_s(now_s, progress.save_s)
        if progress.phase in BEFORE_TRAINING:
            closing_s -= self.save_limit_s(progress.save_s)
        budget, age_s = replace(self._budget, price_usd_per_hour=price), now_s - self._booted_s
        if not budget.reached(age_s, closing_s):
            return False
        to_end_s = self._to_end_s(progress, now_s)
        return to_end_s is None or budget.reached(age_s, to_end_s)

    def _to_end_s(self, progress: Progress, now_s: float) -> float | None:
        """Seconds until this machine is no longer billed, if the run finishes on it; None before its speed is known.

        Closing the machine a little sooner would need the same save and gain nothing.
        """
        if self._first_step is None or progress.step <= self._first_step[0] or progress.phase != "training":
            return None
        first, since_s = self._first_step
        steps_s = max(0, progress.total_steps - progress.step) * (now_s - since_s) / (progress.step - first)
        save_s = progress.save_s or self._planned_save_s or ASSUMED_SAVE_S
        return steps_s + save_s + (TEARDOWN_S if self.controller.is_watching(now_s) else AUTODOWN_S)

    def stuck_s(self, progress: Progress, now_s: float) -> float:
        """Seconds since the last new step, phase, or progress within a phase. Has to be called often."""
        if _where(progress) != _where(self._last):
            self._last, self._moved_s = progress, now_s
            self._alarmed = False
        return now_s - self._moved_s

    def alarm(self, progress: Progress, now_s: float) -> bool:
        """Is it time to report that a phase before training makes no progress?

        True once per silence, and only if no controller reports it.
        """
        stuck_s, limit_s = self.stuck_s(progress, now_s), quiet_limit_s(progress.phase)
        if limit_s is None or self._alarmed or self.controller.is_watching(now_s):
            return False
        self._alarmed = stuck_s > ALARM_SHARE * limit_s
        return self._alarmed

    def verdict(self, progress: Progress, *, away_s: float, now_s: float) -> Verdict:
        """Does this attempt have to end? `away_s`: seconds since the bucket's last response."""
        stuck_s = self.stuck_s(progress, now_s)
        if self._first_step is None and progress.phase == "training" and progress.total_steps:
            self._first_step = progress.step, now_s
        if self._reaches_budget(progress, now_s):
            return "budget"
        if (limit_s := quiet_limit_s(progress.phase)) is not None and stuck_s > limit_s:
            return "hung"
        if not self._rented:  # on the user's own machine waiting costs nothing
            return ""
        if away_s > BUCKET_AWAY_S:
            return "bucket away"
        if stuck_s > HANG_S and not self.controller.is_watching(now_s):
            return "hung"
        return ""
