"""A wish that reaches a run through the bucket: whoever may write there can ask it to save and end, from anywhere."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal

from pydantic import Field

from checkpoints.clock import Clock, SystemClock
from checkpoints.confirm import read_if_there
from checkpoints.manifest import Record
from checkpoints.store import Store

REQUEST_KEY = "request.json"


class Request(Record):
    """request.json: the newest wish. Deleted by whoever fulfils it."""

    version: Literal[1] = 1
    id: str
    time: datetime
    action: Literal["stop", "move"] = Field(
        description="stop: save and end the run, whichever attempt sees it. move: save and go on elsewhere"
    )
    attempt: int = Field(description="of a move: the attempt that is meant; another one takes no notice")
    reason: str = ""

    def is_for(self, attempt: int) -> bool:
        """Is it for this attempt?"""
        return self.action == "stop" or self.attempt == attempt


def ask(
    store: Store, action: Literal["stop", "move"], attempt: int, reason: str, clock: Clock | None = None
) -> Request:
    """Leave a wish; a stop is never replaced by a move."""
    standing = read_request(store)
    if standing is not None and standing.action == "stop":
        return standing
    now = (clock or SystemClock()).now()
    request = Request(id=uuid.uuid4().hex[:12], time=now, action=action, attempt=attempt, reason=reason)
    store.put(REQUEST_KEY, request.to_json())
    return request


def read_request(store: Store) -> Request | None:
    """The wish that stands, or None."""
    return read_if_there(store, REQUEST_KEY, Request)


def withdraw(store: Store) -> None:
    """Take the wish away: it is fulfilled, or the user wants to go on."""
    store.delete(REQUEST_KEY)
