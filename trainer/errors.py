"""The trainer's branch of the error tree (see `checkpoints.errors`).

NotusError
+-- UserError                exit code 2
|   +-- RecipeError          a wrong key, type or value in a recipe: file, line, key, nearest valid key
|   +-- DataError            a data set that can't be trained on
|   +-- TaskError            the task around the run is wrong, on every machine
|   +-- HardwareError        the machine lacks what the recipe needs
|   |   +-- MachineFault     only this machine does: another one of its kind may not
+-- TrainingFailed           a rank crashed, or the Hub did not respond: the next attempt may succeed
Preempted                    not an error: the state is saved, exit code 75
"""

from __future__ import annotations

from checkpoints.errors import NotusError, UserError

EXIT_FAILED = 1
EXIT_PREEMPTED = 75
EXIT_STOPPED = 76
"""Saved and ended by a user or a limit: it must not be restarted automatically, so it isn't 75."""

SET_UP_GAVE_UP = 10
"""Only from `python -m trainer.failed_start`: the run has used up its failed starts. The set-up script reads it."""


class RecipeError(UserError):
    """An invalid recipe; the message names file, line and key."""


class DataError(UserError):
    """A data set with missing columns, empty rows or nothing left to train on."""


class TaskError(UserError):
    """The task around the run asks for what no machine can provide, even if earlier attempts got past it."""


class HardwareError(UserError):
    """The recipe needs other hardware than this machine has."""


class MachineFault(HardwareError):
    """This machine is faulty: a broken GPU or driver, a full disk. Another one of its kind may not be."""


class TrainingFailed(NotusError):
    """This attempt failed and another one may succeed: a rank crashed, or the Hub did not respond."""
