"""The launcher's branch of the error tree (see `checkpoints.errors`).

NotusError
+-- UserError            exit code 2
|   +-- RequestError     an option that can't be, alone or together with another
|   +-- UnknownRun       no such run in the bucket
|   +-- UnclearJob       a job of SkyPilot's that may be the run's, and doesn't tell
+-- NothingFits          exit code 3: no offer, or none within deadline and budget
+-- RunFailed            the run has given up; the message says why
+-- SkyFailed            SkyPilot refused or does not answer
"""

from __future__ import annotations

from checkpoints.errors import NotusError, UserError

EXIT_STOPPED = 75


class RequestError(UserError):
    """A launch option that doesn't make sense."""


class UnknownRun(UserError):
    """The bucket has no run of this name."""


class UnclearJob(UserError):
    """SkyPilot has a job of this name that doesn't tell which run it is for: nothing is done to it."""


class NothingFits(NotusError):
    """No capacity, or no plan within the deadline and the budget."""

    exit_code = 3


class RunFailed(NotusError):
    """The run ended without a model."""


class SkyFailed(NotusError):
    """SkyPilot refused what we asked for, or does not answer."""
