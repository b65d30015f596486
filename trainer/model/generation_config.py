"""Repairs a base model's `generation_config.json` that transformers loads but then refuses to write."""

from __future__ import annotations

import logging
from typing import Any

from transformers import GenerationConfig

from trainer.config.model_config import embedding_rows

logger = logging.getLogger(__name__)


def repair_generation_config(model: Any, name: str) -> None:
    """Repair the settings of `model` so that they can be saved with its weights: the file isn't the user's own.

    The usual fault is a temperature or top_p with `do_sample: false` (Llama 2 chat and Vicuna as of 2023), which is
    clearly meant for sampling. What can't be repaired that way is derived from the model's config.
    """
    settings = model.generation_config
    if settings is None or (_can_be_written(settings) and _can_end(settings, model.config)):
        return
    repaired = GenerationConfig.from_dict({**settings.to_dict(), "do_sample": True})
    if _can_be_written(repaired) and _can_end(repaired, model.config):
        logger.warning("generation_config.json of %s has sampling settings without do_sample: setting it", name)
    else:
        repaired = GenerationConfig.from_model_config(model.config)
        logger.warning("generation_config.json of %s can't be used as it is: using config.json instead", name)
    model.generation_config = repaired


def _can_end(settings: GenerationConfig, config: Any) -> bool:
    """Can the model generate each token that ends an answer?"""
    rows, ends = embedding_rows(config.to_dict()), settings.eos_token_id
    return rows is None or all(end < rows for end in (ends if isinstance(ends, list) else [ends or 0]))


def _can_be_written(settings: GenerationConfig) -> bool:
    """Can the settings be written, by the rule of `save_pretrained`?"""
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
