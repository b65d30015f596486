"""Which base model a run was trained on: what `model.name` stands for may change while a run lives."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from checkpoints.records.file_transfer import hash_file
from trainer.config.fingerprint import Base
from trainer.hub.load_errors import blaming
from trainer.model.base_files import CONFIG, read_header

logger = logging.getLogger(__name__)

WHOLE_BYTES = 1 << 20
PIECE_BYTES = 64 << 10
"""Of the beginning, the middle and the end of a larger tensor: all that earlier versions looked at."""
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
)
"""Files of a model beside its weights that decide what it computes."""


def identify_base(name: str, revision: str | None, *, made_here: bool = False) -> Base:
    """The identity of what `from_pretrained(name, revision=revision)` loads: a local folder, or a model of the Hub.

    A commit on the Hub that leaves weights and settings alone (another README) is the same base model: the files'
    hashes say so, where the Hub tells them. `made_here`: by this version of the libraries, which write settings as
    they like; then only the weights count.

    Raises `UserError` and `TrainingFailed` as loading the model does.
    """
    with blaming("the model", name, "model.name"):
        if Path(name).is_dir():
            weights, content = hash_weights(Path(name))
            files = {} if made_here else _settings_here(Path(name))
            return {"commit": None, "weights": weights, "content": content, **files}
        from transformers import AutoConfig

        commit = AutoConfig.from_pretrained(name, revision=revision)._commit_hash
    return {"commit": commit, **_told_by_the_hub(name, commit)}


def folder_of(name: str, revision: str | None) -> Path | None:
    """Where the files of a model lie that was loaded on this machine; None where the Hub's client has kept none."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _settings_here(folder: Path) -> dict[str, str | None]:
    """Hashes of a folder's files that say what its weights, and a text's tokens, mean."""
    return {
        path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.is_file() and _is_setting(path.name)
    }


def _is_setting(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in SETTINGS)


def hash_weights(folder: Path) -> tuple[str, str]:
    """xxh3-128 of a folder's weights, by the tensors' names: how they are cut into files doesn't matter.

    Twice: of pieces of large tensors, as earlier versions noted it, and of everything.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        told = _digest({path.name: hash_file(path) for path in folder.glob("*.bin")})
        return told, told
    found = {name: told for path in files for name, told in _tensors(path)}
    return _digest({name: [*kind, pieces] for name, (kind, pieces, _) in found.items()}), _digest(found)


def _tensors(path: Path) -> Iterator[tuple[str, tuple[list[Any], str, str]]]:
    """Name, and dtype and shape, hash of pieces, and hash of each tensor in a safetensors file."""
    header = read_header(path)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in header.items():
            start, end = (data + offset for offset in entry["data_offsets"])
            pieces = _hash_of(file, _pieces(start, end))
            whole = _hash_of(file, [(place, min(READ_BYTES, end - place)) for place in range(start, end, READ_BYTES)])
            yield name, ([entry["dtype"], entry["shape"]], pieces, whole)


def _hash_of(file: BinaryIO, places: Iterable[tuple[int, int]]) -> str:
    """`places`: where in the file, and how many bytes."""
    digest = xxhash.xxh3_128()
    for place, size in places:
        file.seek(place)
        digest.update(file.read(size))
    return digest.hexdigest()


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    size = end - start
    if size <= WHOLE_BYTES:
        return [(start, size)]
    return [(place, PIECE_BYTES) for place in (start, start + size // 2, end - PIECE_BYTES)]


def _told_by_the_hub(name: str, commit: str | None) -> dict[str, str | None]:
    """Of weights and settings, from the hashes that the Hub keeps of its files; nothing where it doesn't answer."""
    import httpx
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(name, revision=commit, files_metadata=True).siblings or []
    except (httpx.HTTPError, OSError, ValueError) as error:
        logger.info("the Hub doesn't tell the hashes of %s: %s", name, error)
        return {"weights": None}
    told = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    weights: str | None = None
    for suffix in (".bin", ".safetensors"):
        if found := {name: sha for name, sha in told.items() if name.endswith(suffix)}:
            weights = _digest(found)
    return {"weights": weights, **{name: sha for name, sha in sorted(told.items()) if _is_setting(name)}}


def _digest(told: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())
