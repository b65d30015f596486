"""Are the weights that were loaded those of a trained model?

What a broken download or a failed run leaves behind has all its names and shapes, and no library objects to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from checkpoints.errors import UserError
from trainer.devices.collectives import gather
from trainer.model.base_files import some

ADAPTERS = "lora_"
"""In the names of what isn't loaded: adapters begin with zeros."""


def check_weights(model: torch.nn.Module, name: str) -> None:
    """Raises `UserError` where `model`, loaded from `name`, has NaN or infinite weights, or a matrix of zeros only.

    Reads every weight once. Collective: under ZeRO-3 each rank looks at its share.
    """
    broken: set[str] = set()
    empty: set[str] = set()
    for key, is_matrix, values in _weights(model):
        low, high = (float(bound) for bound in torch.aminmax(values)) if values.numel() else (0.0, 0.0)
        if not abs(high - low) < float("inf"):  # NaN, too
            broken.add(key)
        elif is_matrix and low == high == 0:
            empty.add(key)
    told = gather((broken, empty))
    if found := set.union(*(mine for mine, _ in told)):
        raise UserError(f"the weights of {name} are no numbers (NaN or infinite) in {some(found)}", AGAIN)
    if found := set.intersection(*(mine for _, mine in told)):
        raise UserError(f"the weights of {name} are nothing but zeros in {some(found)}", AGAIN)


AGAIN = (
    "fetch its files again: hf download MODEL --local-dir FOLDER; a download that broke off can leave zeros, "
    "and a training that diverged NaN"
)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, bool, torch.Tensor]]:
    """Name, is it a matrix, and this rank's share of each weight; without those that are packed in 4 bits."""
    for key, parameter in model.named_parameters():
        held: Any = getattr(parameter, "ds_tensor", parameter)
        shape: Iterable[int] = getattr(parameter, "ds_shape", parameter.shape)
        if ADAPTERS not in key and held.is_floating_point():
            plain = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            yield plain, len(tuple(shape)) > 1, held.detach()
