"""Repairs a base model's `generation_config.json` that transformers loads but then refuses to write."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
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


@contextlib.contextmanager
def loadable_generation_config(name: str) -> Iterator[None]:
    """Inside this context, a `generation_config.json` that can't even be loaded counts as missing.

    transformers then derives the settings from config.json. It validates some values when it reads them, and a file
    with several return sequences, for example, would keep a model from being loaded that is only trained.
    """
    own = GenerationConfig.__dict__["from_pretrained"]

    def tolerant(cls: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return own.__get__(None, cls)(*args, **kwargs)
        except OSError:
            raise
        except Exception as error:
            logger.warning("generation_config.json of %s can't be read, using config.json instead: %s", name, error)
            raise OSError(str(error)) from error

    GenerationConfig.from_pretrained = classmethod(tolerant)
    try:
        yield
    finally:
        GenerationConfig.from_pretrained = own


def _can_end(settings: GenerationConfig, config: Any) -> bool:
    """Can the model generate each token that ends an answer?"""
    rows, ends = embedding_rows(config.to_dict()), settings.eos_token_id
    every = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return all(isinstance(end, int) and (rows is None or end < rows) for end in every)


def _can_be_written(settings: GenerationConfig) -> bool:
    """Can the settings be written, by the rule of `save_pretrained`?"""
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
