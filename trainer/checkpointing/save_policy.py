"""When to save a state, and which saved state is good. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trainer.config.recipe import Saves


class Moment(NamedTuple):
    """The situation at the end of a step."""

    step: int
    epoch_ended: bool
    finished: bool
    stopping: bool
    interval_over: bool
    """By the clock (`every_minutes`, `auto`), on any rank."""
    evaluation_due: bool = False
    busy: bool = False
    """The previous save is still in flight."""


def save_reason(saves: Saves, moment: Moment) -> str:
    """Why this moment's state is saved; '' = don't save."""
    if moment.finished:
        return "final"
    if moment.stopping:
        return "stop"
    if moment.epoch_ended and saves.every_epoch:
        return "epoch"
    if moment.evaluation_due and saves.keep_best:
        return "evaluation"  # even during an upload: what isn't saved can't be kept
    if moment.busy:
        return ""  # the next interval will do; a step must not wait for the network
    if moment.evaluation_due:
        return "evaluation"  # it takes minutes, and a preemption then would lose everything since the last save
    if saves.every_steps and moment.step % saves.every_steps == 0:
        return "interval"
    if moment.interval_over:
        return "interval"
    return ""


def what_is_left(committed: Iterable[int], step: int) -> str:
    """Tell the user which checkpoint to return to if the loss or gradient of `step` isn't finite.

    `step` computed with the weights after `step` - 1, so those are bad. The weights before them gave finite values in
    `step` - 1.
    """
    steps = set(committed)
    suspect = f"; don't use that of step {step - 1}, whose weights gave this" if step - 1 in steps else ""
    good = [each for each in steps if each < step - 1]
    return (
        f"the last good checkpoint is that of step {max(good)}" if good else "there is no good checkpoint"
    ) + suspect
