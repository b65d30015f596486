"""Where the time of a run went, and what each interruption cost. Pure functions of the receipt.

The names are those of Google's ml-goodput-measurement: time is productive, or it is badput of a named kind. Its kinds
"accelerator initialization", "training preparation" and "program startup" are one here, because a run only records when
an attempt starts and when its first step is done.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field

from launcher.frozen import Frozen
from launcher.report.receipt import AttemptLine, Receipt


class Part(Frozen):
    """A part of the wall time."""

    name: str
    seconds: float
    share: float = Field(description="of the wall time")
    productive: bool = False


class Interruption(Frozen):
    """The cost of an attempt that ended before the run did."""

    attempt: int
    ended: str = Field(description="preempted, failed, stopped, ...")
    at_step: int
    redone_steps: int
    redone_s: float
    waiting_s: float = Field(description="until the next attempt started")
    startup_s: float = Field(description="of the next attempt")
    cost_usd: float | None = Field(
        description="of redone steps and the start-up, at the machines' prices; None = no price"
    )


def goodput_parts(receipt: Receipt) -> list[Part]:
    """Return the parts of the wall time, the productive one first; they add up to it."""
    first_startup_s = receipt.attempts[0].startup_s if receipt.attempts else 0.0
    seconds = {
        "productive training": receipt.useful_s,
        "startup of the first attempt": first_startup_s,
        "startup after interruptions": max(0.0, receipt.startup_s - first_startup_s),
        "wasted progress from disruption": receipt.redone_s,
        "infrastructure recovery": receipt.waiting_s,
        "checkpoint saving": receipt.saving_s,
        "evaluation, export and other": receipt.other_s,
    }
    wall_s = receipt.wall_s or 1.0
    return [
        Part(name=name, seconds=value, share=value / wall_s, productive=index == 0)
        for index, (name, value) in enumerate(seconds.items())
    ]


def interruptions(receipt: Receipt) -> list[Interruption]:
    """Return an interruption for each attempt that was followed by another, oldest first."""
    pace_s = receipt.redone_s / receipt.steps_redone if receipt.steps_redone else 0.0
    return [_interruption(before, after, pace_s, receipt) for before, after in pairwise(receipt.attempts)]


def _interruption(before: AttemptLine, after: AttemptLine, pace_s: float, receipt: Receipt) -> Interruption:
    redone_s = before.redone_steps * pace_s
    prices = [_price_usd_per_hour(attempt, receipt) for attempt in (before, after)]
    lost_s = (redone_s, after.startup_s)
    cost = sum(price * lost / 3600 for price, lost in zip(prices, lost_s, strict=True) if price is not None)
    return Interruption(
        attempt=before.number,
        ended=before.ended,
        at_step=before.to_step,
        redone_steps=before.redone_steps,
        redone_s=redone_s,
        waiting_s=max(0.0, (after.started_at - before.ended_at).total_seconds()),
        startup_s=after.startup_s,
        cost_usd=None if None in prices else cost,
    )


def _price_usd_per_hour(attempt: AttemptLine, receipt: Receipt) -> float | None:
    """The price of the machine that was up when the attempt started; None without machines."""
    started = [machine for machine in receipt.machines if machine.since <= attempt.started_at]
    return started[-1].price_usd_per_hour if started else None
