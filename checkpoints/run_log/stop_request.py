"""Requests to a run through its bucket: whoever may write there can have it save and end, from anywhere."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field

from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.run_log.causes import words
from checkpoints.run_log.event_kinds import AnyLimit
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock

REQUEST_KEY = "request.json"
RequestedAction = Literal["stop", "move"]


class Request(Record):
    """request.json: the newest request. Deleted by whoever fulfils it.

    Unknown keys are ignored: a machine with an older version of this code has to obey it too.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = 1
    id: str
    time: AwareDatetime
    action: Annotated[
        RequestedAction | Literal["other"], BeforeValidator(words(RequestedAction, otherwise="other"))
    ] = Field(description="stop: save and end the run, whichever attempt reads it. move: save and resume elsewhere")
    attempt: int = Field(description="for a move: the attempt it is for; others ignore it")
    reason: str = Field(default="", description="for people")
    limit: AnyLimit | None = Field(default=None, description="for a stop: the limit that the run has reached")

    def is_for(self, attempt: int) -> bool:
        """Is it for this attempt? An action that only a newer version knows is for none."""
        return self.action == "stop" or (self.action == "move" and self.attempt == attempt)


def ask(
    store: Store,
    action: RequestedAction,
    attempt: int,
    reason: str,
    clock: Clock | None = None,
    limit: AnyLimit | None = None,
) -> Request:
    """Leave a request; a stop is never replaced by a move. `limit`: see `Request`."""
    current = read_request(store)
    if current is not None and current.action == "stop":
        return current
    now = (clock or SystemClock()).now()
    new_id = uuid.uuid4().hex[:12]
    request = Request(id=new_id, time=now, action=action, attempt=attempt, reason=reason, limit=limit)
    store.put(REQUEST_KEY, request.to_json())
    return request


def read_request(store: Store) -> Request | None:
    """The current request, or None."""
    return read_if_there(store, REQUEST_KEY, Request)


def withdraw(store: Store) -> None:
    """Delete the request: it is fulfilled, or the user wants to continue."""
    store.delete(REQUEST_KEY)
