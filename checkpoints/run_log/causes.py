"""The words that say why, shared by the policy, the diary, the request in the bucket and the exit codes.

A sentence for people (`reason`, `message`) goes with each, and nothing is ever decided by that sentence. New words are
added here; a reader older than a word reads it as "other" (of a machine's end: "unknown") instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

Limit = Literal[
    "budget",  # going on would cost more than the user gave
    "deadline",  # it can no longer be met
    "places",  # no cloud offers a machine for this task
    "progress",  # too many machines, or too many dollars, without a new committed step
]
"""Why a run ends although the user did not stop it and nothing failed: exit code 3."""

LaunchCause = Literal[
    "cheapest",  # the cheapest place first
    "deadline",  # the deadline is near: on demand first
    "slack_short",  # what is left of the slack is worth less than on demand costs
    "slack_enough",  # spot is available, and there is enough slack to absorb a preemption
]
WaitCause = Literal[
    "sold_out",  # no place had a machine just now
    "slack_enough",  # there is time to wait for spot
    "progress",  # the last machines brought nothing: a pause before the next
]
MoveCause = Literal[
    "deadline",  # the deadline is near, and a preemption would miss it
    "cheaper",  # another place would save money on the rest
    "slack_enough",  # the slack is worth a change to spot
    "budget",  # a preemption would leave too little of the budget for the way to the end
    "progress",  # the machine makes none
]
Action = Literal["launch", "move", "stop"]
"""What the policy decides."""

Cause = Literal[LaunchCause, WaitCause, MoveCause, Limit]
"""Why the policy decided as it did."""

GoneCause = Literal[
    "preempted",  # taken away
    "moved",  # the policy gave it back, for another place
    "stopped",  # the user asked, or a signal came
    "crashed",  # the attempt on it failed
    "budget",  # the budget is used up, and the trainer did not obey in time
    "hung",  # the trainer did not obey an urgent move in time
    "never_ran",  # it came, and was gone before it ran the job
    "no_progress",  # it ran for too long without a new step
    "closed",  # the job is over, and so is its machine
    "unknown",  # its end was never written
]
"""Why a machine is gone."""

AttemptOutcome = Literal["finished", "preempted", "stopped", "failed", "user_error", "fenced"]
"""How an attempt ended."""


def words(*kinds: Any, otherwise: str) -> Callable[[Any], Any]:
    """A validator for a field of words: a word that is in none of `kinds` (Literals) becomes `otherwise`."""
    known = {word for kind in kinds for word in get_args(kind)}
    return lambda word: otherwise if isinstance(word, str) and word not in known else word
