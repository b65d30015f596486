"""Checks for models whose config.json ties input and output embeddings, while their files have two different matrices.

transformers then keeps both, with a line in its log; under ZeRO-3 it uses one of the two; and an inference server may
use the other one. These are different models under one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.errors import UserError

INPUTS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
OUTPUTS = ("lm_head", "embed_out", "output")
"""Names of the modules in files of weights."""
PIECE_BYTES = 16 << 20


class _Tensor(NamedTuple):
    """A tensor in a safetensors file."""

    path: Path
    name: str
    entry: Mapping[str, Any]

    def is_of(self, modules: tuple[str, ...]) -> bool:
        return self.name.endswith(tuple(f"{module}.weight" for module in modules))

    def pieces(self) -> Iterator[bytes]:
        start, end = self.entry["data_offsets"]
        with self.path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little") + start)
            for left in range(end - start, 0, -PIECE_BYTES):
                yield file.read(min(left, PIECE_BYTES))


def check_tied(folder: Path, config: Mapping[str, Any], headers: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that input and output embeddings are the same if `config` ties them. Raises `UserError`.

    `headers`: the headers of the folder's safetensors files.
    """
    if not config.get("tie_word_embeddings"):
        return
    tensors = [_Tensor(path, name, entry) for path, header in headers.items() for name, entry in header.items()]
    inputs = [tensor for tensor in tensors if tensor.is_of(INPUTS)]
    outputs = [tensor for tensor in tensors if tensor.is_of(OUTPUTS)]
    if len(inputs) == len(outputs) == 1 and not _are_equal(*inputs, *outputs):
        raise UserError(
            f"{folder / 'config.json'} has tie_word_embeddings: true, but {inputs[0].name}, {outputs[0].name} differ",
            "if both were trained, set tie_word_embeddings to false there; otherwise remove the superfluous one",
        )


def _are_equal(one: _Tensor, other: _Tensor) -> bool:
    if any(one.entry[key] != other.entry[key] for key in ("dtype", "shape")):
        return False
    return all(mine == theirs for mine, theirs in zip(one.pieces(), other.pieces(), strict=True))
