"""Exports a checkpoint as a Hugging Face folder: safetensors, config, tokenizer. Needs no GPU and no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from checkpoints.commit.folder_manifest import MODEL, fetch_model_files
from checkpoints.errors import UserError
from checkpoints.restore.consolidate import Zero3State, to_bfloat16
from checkpoints.storage.base import Store

Dtype = Literal["bfloat16", "float32"]
SHARD_BYTES = 4 << 30
_NAMES = {"bfloat16": "BF16", "float32": "F32"}


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


def export(
    store: Store,
    state: Zero3State,
    folder: Path,
    *,
    dtype: Dtype = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> list[str]:
    """Write the weights of `state` to the empty `folder`, with the files in `model/` of the run.

    Returns the names of the files. The weights are the fp32 masters rounded to `dtype`: exactly the weights that the
    trainer computes with. Holds at most `shard_bytes` of them at once.

    Raises:
        UserError: the run has no config.
        CorruptCheckpoint: a file in `model/` isn't what was written.
    """
    names = fetch_model_files(store, folder)
    if "config.json" not in names:
        raise UserError(f"{store.url} has no {MODEL}/config.json", "it was saved without the model's config")
    tell_dtype(folder / "config.json", dtype)
    weight_map: dict[str, str] = {}
    files: list[str] = []
    for tensors in _batches(_weights(state, dtype), shard_bytes):
        files.append(f"model-{len(files) + 1:05d}.safetensors")
        _write_safetensors(folder / files[-1], tensors, _NAMES[dtype])
        weight_map |= dict.fromkeys((tensor.name for tensor in tensors), files[-1])
        progress(sum(tensor.data.nbytes for tensor in tensors))
    return names + _finish(folder, files, weight_map)


def tell_dtype(path: Path, dtype: Dtype) -> None:
    """Set the dtype in the config: with dtype "auto", transformers loads weights by it, not as they are stored."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the key in older versions
    path.write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")


def _finish(folder: Path, files: list[str], weight_map: dict[str, str]) -> list[str]:
    """Name the shards as transformers expects, and write their index."""
    if len(files) == 1:
        (folder / files[0]).rename(folder / "model.safetensors")
        return ["model.safetensors"]
    renamed = {name: f"{name.removesuffix('.safetensors')}-of-{len(files):05d}.safetensors" for name in files}
    for old, new in renamed.items():
        (folder / old).rename(folder / new)
    total = sum((folder / name).stat().st_size for name in renamed.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {tensor: renamed[file] for tensor, file in weight_map.items()},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return [*renamed.values(), "model.safetensors.index.json"]


def _weights(state: Zero3State, dtype: Dtype) -> Iterator[_Tensor]:
    for name, values in state.tensors():
        yield _Tensor(name, values.shape, to_bfloat16(values) if dtype == "bfloat16" else values)


def _batches(tensors: Iterator[_Tensor], limit_bytes: int) -> Iterator[list[_Tensor]]:
    batch: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if batch and size + tensor.data.nbytes > limit_bytes:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += tensor.data.nbytes
    if batch:
        yield batch


def _write_safetensors(path: Path, tensors: list[_Tensor], dtype: str) -> None:
    """Write the safetensors format: u64 header length, JSON header, bytes.

    Source: huggingface/safetensors, README, "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.data.nbytes
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.data).tobytes())
