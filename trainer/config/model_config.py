"""Reads a model's `config.json`, whatever its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model, which is nested in a multimodal model's config."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """How many token ids a model has embeddings for; None if its config lacks the number."""
    rows = text_config(config).get("vocab_size")
    return rows if isinstance(rows, int) else None
