"""The trainer's branch of the error tree (see `checkpoints.errors`).

NotusError
+-- UserError                exit code 2
|   +-- RecipeError          a wrong key, type or value in a recipe: file, line, key, nearest valid key
|   +-- DataError            a data set that can't be trained on
|   +-- TaskError            the task around the run is wrong, for every machine that it gets
|   +-- HardwareError        the machine lacks what the recipe needs
|   |   +-- MachineFault     this one machine does: another one of its kind may not
+-- TrainingFailed           a rank crashed, or the Hub did not answer: the next attempt may not see it
Preempted                    not an error: the state is saved, exit code 75
"""

from __future__ import annotations

from checkpoints.errors import NotusError, UserError

EXIT_FAILED = 1
EXIT_PREEMPTED = 75
EXIT_STOPPED = 76
"""Saved and ended because somebody, or a limit, said so: nobody may start it again by itself, so it isn't 75."""

SET_UP_GAVE_UP = 10
"""Of `python -m trainer.failed_start` alone: the run has had its failed starts. The set-up script reads it."""


class RecipeError(UserError):
    """A recipe that doesn't say what it should; the message names file, line and key."""


class DataError(UserError):
    """A data set with missing columns, empty rows or nothing left to train on."""


class TaskError(UserError):
    """The task around the run asks for what no machine gives, whatever earlier attempts of the run got past."""


class HardwareError(UserError):
    """The recipe needs other hardware than this machine has."""


class MachineFault(HardwareError):
    """This machine isn't what was rented: a broken GPU or driver, a full disk. Another one of its kind may be."""


class TrainingFailed(NotusError):
    """This attempt can't go on and another one may: a rank crashed, or the Hub did not answer."""
