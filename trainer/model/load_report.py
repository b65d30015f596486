"""Turns what transformers only logs while it loads a model into an error.

It fills weights that are missing, or have another shape, with random numbers; the run continues with a useless model.
`trainer.model.base_files` checks the files alone: only the model's class knows which names it needs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import modeling_utils

from checkpoints.errors import UserError
from trainer.model.base_files import first_names

MOST_NAMES = 4
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@contextlib.contextmanager
def complete_weights(name: str) -> Iterator[None]:
    """Inside this context, loading the model `name` raises `UserError` if a tensor is missing or doesn't fit."""
    report = modeling_utils.log_state_dict_report

    def check(*args: Any, loading_info: Any, model: Any, **kwargs: Any) -> None:
        refuse_incomplete(name, model, loading_info)
        report(*args, loading_info=loading_info, model=model, **kwargs)

    modeling_utils.log_state_dict_report = check
    try:
        yield
    finally:
        modeling_utils.log_state_dict_report = report


def refuse_incomplete(name: str, model: Any, info: Any) -> None:
    """Check transformers' `LoadStateDictInfo`. Raises `UserError` naming the tensors."""
    if info.mismatched_keys:
        key, found, wanted = min(info.mismatched_keys)
        raise UserError(
            f"the weights of {name} don't fit its config.json: {key} has the shape {tuple(found)} in the file and "
            f"{tuple(wanted)} in the model{_more(len(info.mismatched_keys) - 1)}",
            "use config.json and weights of the same model",
        )
    if info.error_msgs or info.conversion_errors:
        messages = [*info.error_msgs, *info.conversion_errors.values()]
        first = " ".join(messages[0].split())
        raise UserError(f"the weights of {name} don't fit its config.json: {first}", "see the log")
    if info.missing_keys:
        raise UserError(
            f"the weights of {name} lack {first_names(info.missing_keys, MOST_NAMES)}: {_why(model, info)}",
            "save the model again with save_pretrained, with a matching config.json",
        )
    if cut := _of_cut_layers(model, info.unexpected_keys):
        raise UserError(
            f"the weights of {name} have more than its config.json: {first_names(cut, MOST_NAMES)} would be left out",
            "correct the number of layers in config.json (num_hidden_layers)",
        )


def _why(model: Any, info: Any) -> str:
    """The consequence, or the likely cause if the names suggest one."""
    missing = sorted(info.missing_keys)
    for other in sorted(info.unexpected_keys):
        if other.endswith(f".{missing[0]}"):
            return f"the file calls them {other}, with a prefix that the model doesn't have"
    if any("lm_head" in key for key in missing) and not getattr(model.config, "tie_word_embeddings", True):
        return "tie_word_embeddings is false in its config.json, and the file has no output embedding of its own"
    return "they would be random numbers"


def _of_cut_layers(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Unexpected tensors whose names differ from the model's only in a layer's number."""
    ignored = "|".join(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    patterns = {_NUMBER.sub("*", key) for key in model.state_dict()}
    return [
        key
        for key in unexpected
        if "." in key and _NUMBER.sub("*", key) in patterns and not (ignored and re.search(ignored, key))
    ]


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
