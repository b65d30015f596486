"""Checks that the loaded weights can be those of a trained model.

What a broken download or a failed run leaves behind has all names and shapes, so libraries accept it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from checkpoints.errors import UserError
from trainer.devices.collectives import gather
from trainer.model.base_files import first_names

ADAPTERS = "lora_"
"""Part of the names of weights that aren't loaded: adapters start as zeros."""


ZERO_CENTRED = ("gemma", "recurrent_gemma", "t5gemma", "vaultgemma", "qwen3_next", "qwen3_5")
"""Kinds of models whose norms multiply by 1 + weight, so that zeros are a beginning and not a hole."""
_SCALE = re.compile(r"norm[^.]*\.weight$|ln_[^.]*\.weight$")
"""Scales of norms: zeros would make everything after them zero."""


def check_weights(model: torch.nn.Module, name: str) -> None:
    """Raises `UserError` if `model`, loaded from `name`, has NaN or infinite weights, or an all-zero matrix or norm.

    Reads every weight once. Collective: under ZeRO-3 each rank checks its share.
    """
    broken: set[str] = set()
    empty: set[str] = set()
    ones = not str(getattr(getattr(model, "config", None), "model_type", "")).startswith(ZERO_CENTRED)
    for key, is_matrix, values in _weights(model):
        low, high = (float(bound) for bound in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
        if not abs(high - low) < float("inf"):  # NaN, too
            broken.add(key)
        elif low == high == 0 and (is_matrix or (ones and _SCALE.search(key))):
            empty.add(key)
    by_rank = gather((broken, empty))
    if found := set.union(*(mine for mine, _ in by_rank)):
        raise UserError(f"the weights of {name} are NaN or infinite in {first_names(found)}", AGAIN)
    if found := set.intersection(*(mine for _, mine in by_rank)):
        raise UserError(f"the weights of {name} are all zeros in {first_names(found)}", AGAIN)


AGAIN = (
    "download its files again: hf download MODEL --local-dir FOLDER; an interrupted download can leave zeros, "
    "and a diverged training NaN"
)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, bool, torch.Tensor]]:
    """Each weight's name, whether it is a matrix, and this rank's share; without weights packed in 4 bits."""
    for key, parameter in model.named_parameters():
        held: Any = getattr(parameter, "ds_tensor", parameter)
        shape: Iterable[int] = getattr(parameter, "ds_shape", parameter.shape)
        if ADAPTERS not in key and held.is_floating_point():
            plain = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield plain, len(tuple(shape)) > 1, held.detach()
