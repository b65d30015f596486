"""A wish that reaches a run through the bucket: whoever may write there can ask it to save and end, from anywhere."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.run_log.causes import words
from checkpoints.run_log.event_kinds import AnyLimit
from checkpoints.storage.base import Store
from checkpoints.util.clock import Clock, SystemClock

REQUEST_KEY = "request.json"
Wish = Literal["stop", "move"]


class Request(Record):
    """request.json: the newest wish. Deleted by whoever fulfils it.

    Unknown keys are ignored: a machine with an older version of this code has to obey, too.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = 1
    id: str
    time: datetime
    action: Annotated[Wish | Literal["other"], BeforeValidator(words(Wish, otherwise="other"))] = Field(
        description="stop: save and end the run, whichever attempt sees it. move: save and go on elsewhere"
    )
    attempt: int = Field(description="of a move: the attempt that is meant; another one takes no notice")
    reason: str = Field(default="", description="for people")
    limit: AnyLimit | None = Field(default=None, description="of a stop: the limit that the run has reached")

    def is_for(self, attempt: int) -> bool:
        """Is it for this attempt? A wish of a newer version's is for none that doesn't know the word."""
        return self.action == "stop" or (self.action == "move" and self.attempt == attempt)


def ask(
    store: Store,
    action: Wish,
    attempt: int,
    reason: str,
    clock: Clock | None = None,
    limit: AnyLimit | None = None,
) -> Request:
    """Leave a wish; a stop is never replaced by a move. `limit`: see `Request`."""
    standing = read_request(store)
    if standing is not None and standing.action == "stop":
        return standing
    now = (clock or SystemClock()).now()
    new_id = uuid.uuid4().hex[:12]
    request = Request(id=new_id, time=now, action=action, attempt=attempt, reason=reason, limit=limit)
    store.put(REQUEST_KEY, request.to_json())
    return request


def read_request(store: Store) -> Request | None:
    """The wish that stands, or None."""
    return read_if_there(store, REQUEST_KEY, Request)


def withdraw(store: Store) -> None:
    """Take the wish away: it is fulfilled, or the user wants to go on."""
    store.delete(REQUEST_KEY)
