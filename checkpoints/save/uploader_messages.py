"""The messages between a rank and its uploader process, one JSON line each."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from checkpoints.commit.retention import Retention
from checkpoints.errors import Fenced, StoreError, TornState, UserError
from checkpoints.save.shard_upload import CHUNK_BYTES, CONCURRENCY

DRAIN_S = 20.0
"""How long an upload may continue after its rank's death. Less than the lease: after that another writer may hold the
run."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Setup(_Message):
    """The first line to an uploader."""

    bucket: str
    run: str
    rank: int
    world_size: int
    writer_id: str
    epoch: int
    retention: Retention
    chunk_bytes: int = CHUNK_BYTES
    concurrency: int = CONCURRENCY
    drain_s: float = DRAIN_S


class Job(_Message):
    """One save of one rank."""

    number: int
    step: int
    prefix: str
    buffer: str
    size_bytes: int
    trees: dict[str, Any]
    tensors: tuple[tuple[str, str, str, tuple[int, ...], int, int], ...]
    metrics: tuple[dict[str, Any], ...] = ()
    reason: str
    fingerprint: dict[str, Any]


class Abandon(_Message):
    """Abandon save `number`: another rank failed, or there is no time for it."""

    abandon: int


class Sent(_Message):
    """How much of a job is in the store so far."""

    number: int
    sent_bytes: int


class Done(_Message):
    """The result of a job. Rank 0: committed. Other ranks: uploaded."""

    number: int
    step: int
    error: Literal["", "fenced", "user_error", "torn", "failed", "abandoned"] = ""
    message: str = ""
    hint: str = ""
    size_bytes: int = 0
    upload_s: float = 0.0

    def raise_error(self) -> None:
        """Raise the uploader's error as its original type."""
        match self.error:
            case "fenced":
                raise Fenced(self.message, self.hint)
            case "user_error":
                raise UserError(self.message, self.hint)
            case "torn":
                raise TornState(self.message, self.hint)
            case "failed" | "abandoned":
                raise StoreError(self.message, self.hint)


def parse_output(line: bytes) -> Sent | Done:
    """Parse a line of the uploader's output."""
    content = json.loads(line)
    return (Sent if "sent_bytes" in content else Done).model_validate(content)
