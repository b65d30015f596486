"""The launcher's branch of the error tree (see `checkpoints.errors`).

NotusError
+-- UserError            exit code 2
|   +-- RequestError     an invalid option or combination of options
|   +-- UnknownRun       no such run in the bucket
|   +-- UnclearJob       a SkyPilot job that may or may not belong to the run
+-- NothingFits          exit code 3: no offer, or none within deadline and budget
+-- RunFailed            the run has given up; the message explains why
+-- SkyFailed            SkyPilot refused or does not answer
"""

from __future__ import annotations

from checkpoints.errors import NotusError, UserError

EXIT_STOPPED = 75


class RequestError(UserError):
    """An invalid launch option."""


class UnknownRun(UserError):
    """The bucket has no run of this name."""


class UnclearJob(UserError):
    """SkyPilot has a job of this name, but it is unclear which run it belongs to, so it is left alone."""


class NothingFits(NotusError):
    """No capacity, or no plan within the deadline and the budget."""

    exit_code = 3


class RunFailed(NotusError):
    """The run ended without a model."""


class SkyFailed(NotusError):
    """SkyPilot refused a request, or does not answer."""
