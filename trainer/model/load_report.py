"""Turns what transformers only logs while it loads a model into an error.

It fills weights that are missing, or have another shape, with random numbers; the run continues with a useless model.
`trainer.model.base_files` checks the files alone: only the model's class knows which names it needs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from transformers import modeling_utils

from checkpoints.errors import UserError
from trainer.model.base_files import first_names

MOST_NAMES = 4
BUFFERS = (r"rotary_emb\.inv_freq$", r"\.(attn|attention|self_attn)\.(masked_)?bias$", r"num_batches_tracked$")
"""Tables that older versions of transformers stored with the weights, and now compute."""


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
    if dropped := _without_a_place(model, info.unexpected_keys):
        raise UserError(
            f"the weights of {name} have more than its config.json: {first_names(dropped, MOST_NAMES)} would be left "
            "out",
            "use config.json and weights of the same model (num_hidden_layers, attention_bias, quantization_config); "
            "adapters have to be merged into the weights first",
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


def _without_a_place(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Unexpected tensors of modules that the model has: more layers, biases, scales of quantized weights, adapters.

    Others belong to modules of their own, such as a value head or a vision tower, and don't change what the rest
    computes.
    """
    ignored = "|".join((*BUFFERS, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())))
    modules = {key for key, module in model.named_modules() if "." in key or not any(module.children())}
    modules.discard("")
    return [
        key
        for key in unexpected
        if not re.search(ignored, key) and any(parent in modules for parent in accumulate(key.split(".")[:-1], _join))
    ]


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}"


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
