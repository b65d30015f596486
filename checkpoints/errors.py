"""The errors of notus-launch that originate in the store of a run.

    NotusError(message, hint)             exit code 1: one clear line, one hint, no traceback for the user
    +-- UserError                         exit code 2: the user can fix it; never retried
    |   +-- InvalidName                   a run, key or file name that could leave its folder
    |   +-- BucketUnusable                no such bucket, no write permission, disk full
    |   |   +-- AccessDenied              credentials refused; may be transient during a run, see `claimed_store`
    |   +-- RunHeld                       another launcher or machine holds the run's lease
    |   +-- NotExact                      the checkpoint belongs to a run with another fingerprint
    |   +-- TornState                     a tensor was changed while it was copied: nothing was saved
    +-- StoreError                        the store failed, and retrying did not help
    |   +-- ObjectMissing
    |   +-- AlreadyExists                 a create-once key is taken
    |   +-- Conflict                      a compare-and-swap lost
    +-- Fenced                            a successor has claimed the run: this writer must stop
    +-- CorruptCheckpoint                 bytes differ from the manifest
    +-- NoGoodCheckpoint                  every committed checkpoint is damaged

`launcher.errors` and `trainer.errors` add their own branches under NotusError, so that one handler at the
top of each command prints all of them the same way.
"""

from __future__ import annotations


class NotusError(Exception):
    """An error with a message for the user, a hint for the fix, and a process exit code."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(NotusError):
    """The input or the environment is wrong; trying again changes nothing."""

    exit_code = 2


class InvalidName(UserError):
    """A name or key that isn't safe as a path or object key."""


class BucketUnusable(UserError):
    """The bucket can't be read or written to as it is."""


class AccessDenied(BucketUnusable):
    """The store refuses the credentials, or there are none."""


class RunHeld(UserError):
    """Another writer holds the lease of the run; the message names it."""


class NotExact(UserError):
    """The saved state belongs to another recipe, world size or data set."""


class TornState(UserError):
    """A tensor of the state was changed while the snapshot was copied: the save fails."""


class StoreError(NotusError):
    """The object store failed, and the client's retries did not help."""


class ObjectMissing(StoreError):
    """There is no object under this key."""


class AlreadyExists(StoreError):
    """A create-once write found the key taken."""


class Conflict(StoreError):
    """A compare-and-swap found another version than the expected one."""


class Fenced(NotusError):
    """A successor holds a newer epoch. Whatever this writer still uploads can no longer be committed."""


class CorruptCheckpoint(NotusError):
    """An object of a checkpoint is missing, short, or fails its checksum."""


class NoMemory(NotusError):
    """A checkpoint needs more memory than this machine has left."""


class NoGoodCheckpoint(NotusError):
    """HEAD names checkpoints, but none passes verification."""
