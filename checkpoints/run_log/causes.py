"""The words for causes, shared by the policy, the diary, the request in the bucket and the exit codes.

Each comes with a sentence for people (`reason`, `message`), which never decides anything. New words are added here; a
reader older than a word reads it as "other" ("unknown" for the end of a machine) instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

Limit = Literal[
    "budget",  # continuing would cost more than the user's budget
    "deadline",  # it can no longer be met
    "places",  # no cloud offers a machine for this task
    "progress",  # too many machines, or too many dollars, without a new committed step
]
"""Why a run ends although the user did not stop it and nothing failed (exit code 3)."""

LaunchCause = Literal[
    "cheapest",  # the cheapest place first
    "deadline",  # the deadline is near: on demand first
    "slack_short",  # what is left of the slack is worth less than on demand costs
    "slack_enough",  # spot is available, and there is enough slack to absorb a preemption
]
WaitCause = Literal[
    "sold_out",  # no place has a machine right now
    "slack_enough",  # there is time to wait for spot
    "progress",  # the last machines made no progress: pause before the next
]
MoveCause = Literal[
    "deadline",  # the deadline is near, and a preemption would miss it
    "cheaper",  # another place would save money on the remaining work
    "slack_enough",  # there is enough slack to change to spot
    "budget",  # a preemption would leave too little of the budget to finish
    "progress",  # the machine makes none
]
Action = Literal["launch", "move", "stop"]
"""What the policy decides."""

Cause = Literal[LaunchCause, WaitCause, MoveCause, Limit]
"""Why the policy decided as it did."""

GoneCause = Literal[
    "preempted",  # taken away
    "moved",  # the policy released it, for another place
    "stopped",  # on the user's request, or by a signal
    "crashed",  # the attempt on it failed
    "budget",  # the budget is used up, and the trainer did not stop in time
    "hung",  # the trainer did not stop in time for an urgent move
    "never_ran",  # it was gone before it ran the job
    "no_progress",  # it ran for too long without a new step
    "closed",  # the job is over, and so is its machine
    "unknown",  # its end was never recorded
]
"""Why a machine is gone."""

AttemptOutcome = Literal["finished", "preempted", "stopped", "failed", "user_error", "fenced"]
"""How an attempt ended."""


def words(*kinds: Any, otherwise: str) -> Callable[[Any], Any]:
    """A validator for a field of such words: a word in none of `kinds` (Literals) becomes `otherwise`."""
    known = {word for kind in kinds for word in get_args(kind)}
    return lambda word: otherwise if isinstance(word, str) and word not in known else word
