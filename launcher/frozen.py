"""The base of records that are computed once and shown as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A pydantic model that can't be changed."""

    model_config = ConfigDict(frozen=True)
