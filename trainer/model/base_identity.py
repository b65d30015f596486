"""Identifies a run's base model: what `model.name` refers to may change during a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from checkpoints.records.file_transfer import hash_file
from trainer.config.fingerprint import FILES_ADDED_LATER, Base
from trainer.hub.load_errors import translated_errors
from trainer.model.base_files import CONFIG, read_header

logger = logging.getLogger(__name__)

WHOLE_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
"""Size of a sample from the start, the middle and the end of a larger tensor: all that earlier versions hashed."""
READ_BYTES = 16 << 20
SETTINGS = (
    CONFIG,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
    "*.py",
    *FILES_ADDED_LATER,
)
"""Files of a model besides its weights that determine what it computes."""


def identify_base(name: str, revision: str | None, *, made_here: bool = False) -> Base:
    """The identity of what `from_pretrained(name, revision=revision)` loads: a local folder, or a model on the Hub.

    A commit on the Hub that changes neither weights nor settings (a new README, for example) is the same base model, by
    the files' hashes, if the Hub provides them. `made_here`: the model was written by this version of the libraries,
    whose settings differ between versions; then only the weights count.

    Raises `UserError` and `TrainingFailed` as loading the model does.
    """
    with translated_errors("the model", name, "model.name"):
        if Path(name).is_dir():
            weights, content = hash_weights(Path(name))
            files = {} if made_here else _settings_here(Path(name))
            return {"commit": None, "weights": weights, "content": content, **files}
        from transformers import AutoConfig

        commit = AutoConfig.from_pretrained(name, revision=revision)._commit_hash
    return {"commit": commit, **_hashes_on_hub(name, commit)}


def folder_of(name: str, revision: str | None) -> Path | None:
    """The folder of a model that was loaded on this machine; None if the Hub's client has not kept it."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _settings_here(folder: Path) -> dict[str, str | None]:
    """Hashes of a folder's config and tokenizer files."""
    files = {path.relative_to(folder).as_posix(): path for path in [*folder.iterdir(), *folder.glob("*/*.jinja")]}
    return {name: hash_file(path) for name, path in sorted(files.items()) if path.is_file() and _is_setting(name)}


def _is_setting(name: str) -> bool:
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in SETTINGS)


def hash_weights(folder: Path) -> tuple[str, str]:
    """xxh3-128 of a folder's weights, by tensor name, so that the split into files doesn't matter.

    Two hashes: one of samples of large tensors, as in earlier versions, and one of everything.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        digest = _digest({path.name: hash_file(path) for path in folder.glob("*.bin")})
        return digest, digest
    found = {name: tensor for path in files for name, tensor in _tensors(path)}
    return _digest({name: [*kind, pieces] for name, (kind, pieces, _) in found.items()}), _digest(found)


def _tensors(path: Path) -> Iterator[tuple[str, tuple[list[Any], str, str]]]:
    """The name of each tensor in a safetensors file, with dtype and shape, the hash of samples, and the full hash."""
    header = read_header(path)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in header.items():
            start, end = (data + offset for offset in entry["data_offsets"])
            pieces = _hash_of(file, _pieces(start, end))
            whole = _hash_of(file, [(at, min(READ_BYTES, end - at)) for at in range(start, end, READ_BYTES)])
            yield name, ([entry["dtype"], entry["shape"]], pieces, whole)


def _hash_of(file: BinaryIO, pieces: Iterable[tuple[int, int]]) -> str:
    """The hash of `pieces` of a file, each an offset and a number of bytes."""
    digest = xxhash.xxh3_128()
    for offset, size in pieces:
        file.seek(offset)
        digest.update(file.read(size))
    return digest.hexdigest()


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    size = end - start
    if size <= WHOLE_BYTES:
        return [(start, size)]
    return [(offset, PIECE_BYTES) for offset in (start, start + size // 2, end - PIECE_BYTES)]


def _hashes_on_hub(name: str, commit: str | None) -> dict[str, str | None]:
    """Hashes of weights and settings, from the Hub's own hashes of its files; none if it doesn't respond."""
    import httpx
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(name, revision=commit, files_metadata=True).siblings or []
    except (httpx.HTTPError, OSError, ValueError) as error:
        logger.info("can't get the hashes of %s from the Hub: %s", name, error)
        return {"weights": None}
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    weights: str | None = None
    for suffix in (".bin", ".safetensors"):
        if found := {name: sha for name, sha in hashes.items() if name.endswith(suffix)}:
            weights = _digest(found)
    return {"weights": weights, **{name: sha for name, sha in sorted(hashes.items()) if _is_setting(name)}}


def _digest(content: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
