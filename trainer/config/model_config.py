"""What a model's `config.json` tells, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model that also sees or hears: the part that writes."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """How many token ids a model knows; None where its config doesn't say."""
    rows = text_config(config).get("vocab_size")
    return rows if isinstance(rows, int) else None
