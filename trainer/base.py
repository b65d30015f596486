"""Which base model a run was trained on: what `model.name` stands for may change while a run lives."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from checkpoints.files import hash_file
from trainer.base_files import read_header
from trainer.fingerprint import Base
from trainer.loading import blaming

logger = logging.getLogger(__name__)

WHOLE_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
"""Of the beginning, the middle and the end of a larger tensor: 57 MB of a 7B model instead of 14 GB."""


def identify_base(name: str, revision: str | None) -> Base:
    """The identity of what `from_pretrained(name, revision=revision)` loads: a local folder, or a model of the Hub.

    A commit on the Hub that leaves the weights alone (another README) is the same base model: the weights' hash says
    so, where the Hub tells it. In a local folder, weights that differ only between the pieces that are read aren't
    noticed; a training changes all of a matrix.

    Raises `UserError` and `TrainingFailed` as loading the model does.
    """
    with blaming("the model", name, "model.name"):
        if Path(name).is_dir():
            return {"commit": None, "weights": hash_weights(Path(name))}
        from transformers import AutoConfig

        commit = AutoConfig.from_pretrained(name, revision=revision)._commit_hash
    return {"commit": commit, "weights": _weights_on_the_hub(name, commit)}


def hash_weights(folder: Path) -> str:
    """xxh3-128 of a folder's weights, by the tensors' names: how they are cut into files doesn't matter."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return _digest({path.name: hash_file(path) for path in folder.glob("*.bin")})
    return _digest({name: told for path in files for name, told in _tensors(path)})


def _tensors(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """Name, and dtype, shape and hash of each tensor in a safetensors file."""
    header = read_header(path)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in header.items():
            start, end = (data + offset for offset in entry["data_offsets"])
            digest = xxhash.xxh3_128()
            for place, size in _pieces(start, end):
                file.seek(place)
                digest.update(file.read(size))
            yield name, [entry["dtype"], entry["shape"], digest.hexdigest()]


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    size = end - start
    if size <= WHOLE_BYTES:
        return [(start, size)]
    return [(place, PIECE_BYTES) for place in (start, start + size // 2, end - PIECE_BYTES)]


def _weights_on_the_hub(name: str, commit: str | None) -> str | None:
    """From the hashes that the Hub keeps of its files; None where it doesn't answer."""
    import httpx
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(name, revision=commit, files_metadata=True).siblings or []
    except (httpx.HTTPError, OSError, ValueError) as error:
        logger.info("the Hub doesn't tell the hashes of %s: %s", name, error)
        return None
    for suffix in (".safetensors", ".bin"):
        if found := {
            file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id
            for file in files
            if file.rfilename.endswith(suffix)
        }:
            return _digest(found)
    return None


def _digest(told: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())
