"""When a state is worth saving. Pure."""

from __future__ import annotations

from typing import NamedTuple

from trainer.recipe import Saves


class Moment(NamedTuple):
    """What there is to know at the end of a step."""

    step: int
    epoch_ended: bool
    finished: bool
    stopping: bool
    interval_over: bool
    """By the clock (`every_minutes`, `auto`), on any rank."""
    evaluation_due: bool = False
    busy: bool = False
    """The previous save is still on its way."""


def save_reason(saves: Saves, moment: Moment) -> str:
    """Why this moment's state is saved; '' = it isn't."""
    if moment.finished:
        return "final"
    if moment.stopping:
        return "stop"
    if moment.epoch_ended and saves.every_epoch:
        return "epoch"
    if moment.evaluation_due and saves.keep_best:
        return "evaluation"  # also behind an upload: what isn't saved can't be kept
    if moment.busy:
        return ""  # the next interval will do; a step may not wait for the network
    if moment.evaluation_due:
        return "evaluation"  # it takes minutes in which a preemption would cost all since the last save
    if saves.every_steps and moment.step % saves.every_steps == 0:
        return "interval"
    if moment.interval_over:
        return "interval"
    return ""
