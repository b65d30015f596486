"""The dead man's switch: the limits that a rented machine keeps by itself.

The controller decides where a run goes and when it stops. It may be on a laptop that sleeps, and then nobody gives
this machine back. So the attempt itself watches three things, and ends before they cost more than they are worth:

    budget       what the run has cost, this machine until now, and what closing takes: as soon as they reach it
    hang         no new step and no new phase for an hour, where no controller looks after that; before the training
                 what `trainer.runtime.startup_phases` has as limits, on the user's own machine too
    bucket       no answer for so long that another machine is worth a try: nothing can be saved from here

There is no deadline here: see docs/concepts/without-a-controller.md. The decisions are pure; `machine_age_s` and
`machine_budget` read what they decide from.
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
"""Environment: what the run had cost when this machine was asked for."""
SAVE_MIN = "NOTUS_SAVE_MIN"
"""Environment: minutes that the plan assumes for the upload of a checkpoint."""
CLUSTER = "SKYPILOT_CLUSTER_INFO"

SILENT_S = 900.0
"""A controller looks once a minute. After this long without a new sign of life it is gone, or asleep."""
HANG_S = 3600.0
"""The controller moves a run after 45 min without a step, so it comes first. An export takes less
on the nodes that it is meant for."""
BUCKET_AWAY_S = 2700.0
"""What isn't saved by then is worth less than the machine that can't save it."""
BILLED_BEFORE_BOOT_S = 180.0
"""From the request for a machine to the boot of its kernel; clouds bill from somewhere between them."""
SET_UP_S = 2700.0
"""Assumed where the machine doesn't tell its age: boot and set-up at their limits."""
ASSUMED_SAVE_S = 300.0
MOST_SAVE_MIN = 24 * 60.0
SAVE_MARGIN = 1.5
"""A save takes longer when all ranks want to be done; and the step before it counts, too."""
TEARDOWN_S = 120.0
"""From the end of the attempt until a controller has given the machine back."""
AUTODOWN_S = 780.0
"""The same without a controller: SkyPilot's agent on the machine ends it after 10 idle minutes; it looks once a
minute."""

Verdict = Literal["", "budget", "hung", "bucket away"]


@dataclass(frozen=True)
class MachineBudget:
    """What this machine may still cost."""

    budget_usd: float
    spent_usd: float
    price_usd_per_hour: float

    def reached(self, age_s: float, closing_s: float) -> bool:
        """Would closing now just fit in, or not even that?"""
        paid_h = (BILLED_BEFORE_BOOT_S + age_s + closing_s) / 3600
        return self.spent_usd + paid_h * self.price_usd_per_hour >= self.budget_usd


def machine_budget(environment: Mapping[str, str]) -> MachineBudget | None:
    """None without a budget, or where nobody says what this machine costs. Raises `UserError`."""
    budget, price = _dollars(environment, BUDGET), _dollars(environment, PRICE)
    if not budget or not price:
        return None
    return MachineBudget(budget, _dollars(environment, SPENT) or 0.0, price)


def planned_save_s(environment: Mapping[str, str]) -> float | None:
    """None if the task has no plan. Raises `UserError`."""
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
    """Seconds since this machine booted; in a container since its first process started.

    From the kernel's monotonic clock: a wall clock may be set while the machine runs.
    """
    try:
        uptime_s = float((proc / "uptime").read_text().split()[0])
        after_command = (proc / "1/stat").read_text().rpartition(")")[2].split()
        return max(0.0, uptime_s - int(after_command[19]) / os.sysconf("SC_CLK_TCK"))  # field 22: starttime
    except (OSError, ValueError, IndexError):
        return SET_UP_S


def save_limit_s(save_s: float | None, planned_s: float | None = None) -> float:
    """Seconds that a last save may take. `save_s` was measured; else the plan's."""
    told_s = planned_s if save_s is None else save_s
    return ASSUMED_SAVE_S if told_s is None else SAVE_MARGIN * told_s + 60.0


class Controller:
    """When the controller was last heard of, by this machine's clock: those of two machines can't be compared."""

    def __init__(self, *, expected: bool, now_s: float) -> None:
        """`expected`: one is to be heard of, so that its silence means something from the start."""
        self._expected = expected
        self._heard_s = now_s
        self._beat: ControllerBeat | None = None
        self._told = False

    def look(self, beat: ControllerBeat | None, now_s: float) -> None:
        """What the bucket has. A bucket that doesn't answer says nothing, and isn't told here."""
        if beat is not None and beat != self._beat:
            self._beat, self._heard_s, self._told, self._expected = beat, now_s, False, True

    @property
    def price_usd_per_hour(self) -> float:
        """Of this machine, as the controller knows it by now; 0 = it has not told."""
        return self._beat.price_usd_per_hour if self._beat is not None else 0.0

    def silent_s(self, now_s: float) -> float:
        return now_s - self._heard_s

    def looks_after_us(self, now_s: float) -> bool:
        return self._expected and self.silent_s(now_s) < SILENT_S

    def just_fell_silent(self, now_s: float) -> bool:
        """True once for each silence: it is worth an alarm."""
        if not self._expected or self._told or self.looks_after_us(now_s):
            return False
        self._told = True
        return True


def _where(progress: Progress) -> tuple[object, ...]:
    return progress.phase, progress.step, progress.done, progress.moved


class DeadMansSwitch:
    """Of one attempt on one machine. All times are of one monotonic clock."""

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
        """From now until this machine is no longer paid, if the attempt ends now."""
        down_s = TEARDOWN_S if self.controller.looks_after_us(now_s) else AUTODOWN_S
        return self.save_limit_s(save_s) + down_s

    def save_limit_s(self, save_s: float | None) -> float:
        """Seconds that a last save may take."""
        return save_limit_s(save_s, self._planned_save_s)

    def _reaches_budget(self, progress: Progress, now_s: float) -> bool:
        """Is the budget reached, at this machine's own price once the controller has reported it?

        Until then the price is the environment's, which is that of the dearest of the requested places. Before the
        first step there is nothing to save.
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
        """Seconds until this machine is no longer paid, if the run ends on it by itself; None before it has a speed.

        Closing the machine a little sooner would take the same save and gain nothing.
        """
        if self._first_step is None or progress.step <= self._first_step[0] or progress.phase != "training":
            return None
        first, since_s = self._first_step
        steps_s = max(0, progress.total_steps - progress.step) * (now_s - since_s) / (progress.step - first)
        save_s = progress.save_s or self._planned_save_s or ASSUMED_SAVE_S
        return steps_s + save_s + (TEARDOWN_S if self.controller.looks_after_us(now_s) else AUTODOWN_S)

    def stuck_s(self, progress: Progress, now_s: float) -> float:
        """Seconds since the last new step or phase, or since anything of a phase moved. Has to be asked often."""
        if _where(progress) != _where(self._last):
            self._last, self._moved_s = progress, now_s
            self._alarmed = False
        return now_s - self._moved_s

    def alarm(self, progress: Progress, now_s: float) -> bool:
        """Is it time to report that nothing moves before the training?

        True once for each silence, and only where no controller reports it.
        """
        stuck_s, limit_s = self.stuck_s(progress, now_s), quiet_limit_s(progress.phase)
        if limit_s is None or self._alarmed or self.controller.looks_after_us(now_s):
            return False
        self._alarmed = stuck_s > ALARM_SHARE * limit_s
        return self._alarmed

    def verdict(self, progress: Progress, *, away_s: float, now_s: float) -> Verdict:
        """Has this attempt to end? `away_s`: since the bucket's last answer."""
        stuck_s = self.stuck_s(progress, now_s)
        if self._first_step is None and progress.phase == "training" and progress.total_steps:
            self._first_step = progress.step, now_s
        if self._reaches_budget(progress, now_s):
            return "budget"
        if (limit_s := quiet_limit_s(progress.phase)) is not None and stuck_s > limit_s:
            return "hung"
        if not self._rented:  # on somebody's own machine patience costs nothing
            return ""
        if away_s > BUCKET_AWAY_S:
            return "bucket away"
        if stuck_s > HANG_S and not self.controller.looks_after_us(now_s):
            return "hung"
        return ""
