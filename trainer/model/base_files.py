"""Checks from its files whether a base model is complete and fits the recipe, without torch, before it is loaded.

If weights are missing, transformers trains on random numbers and only logs a line, and a mismatch becomes an index
error in the first step, on a GPU a device-side assertion. Each of these is a `UserError` here, with the file and the
fix.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from trainer.config.model_config import embedding_rows, text_config
from trainer.config.recipe import BUILTIN, Recipe
from trainer.model.tied_embeddings import check_tied

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
JSON_FILES = (CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""A `generation_config.json` isn't among them: it is repaired."""
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""The dtypes of safetensors 0.6, and the bits of an element."""
PICKLE = b"\x80"
LFS_POINTER = b"version https://git-lfs.github.com/spec"
POSITIONS = ("max_position_embeddings", "n_positions")
"""Keys of a `config.json` for a model's longest sequence. Models without them have no such limit (ALiBi)."""
TIED_MODULES = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings")
"""Names of input and output embeddings."""
AGAIN = "fetch that file again: hf download MODEL --local-dir FOLDER"


def check_local_base(recipe: Recipe) -> None:
    """Check a base model in a local folder; models on the Hub are checked once they are downloaded.

    Raises `UserError`.
    """
    name = recipe.model.name
    if name.startswith(BUILTIN) or not Path(name).is_dir():
        return
    check_files(Path(name))
    config = read_config(Path(name))
    check_config(config, recipe, Path(name) / CONFIG)
    check_tied(Path(name), config, read_headers(Path(name)))


def check_files(folder: Path) -> None:
    """Check that a model's files are complete, by their headers and sizes. Raises `UserError` naming the file."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            _check_file(path)
        elif path.suffix in (".safetensors", ".json"):
            what = "a folder" if path.is_dir() else f"a link to {os.path.realpath(path)}, which doesn't exist"
            raise UserError(f"{path} is {what}", AGAIN)
    if (folder / ADAPTER).exists():
        raise UserError(
            f"{folder} has adapters beside the weights ({ADAPTER}), and a base model is one set of weights",
            "merge them first (peft's merge_and_unload), or remove that file and the adapters' weights",
        )
    _check_shards(folder)


def _check_file(path: Path) -> None:
    """Check one file by its header, its size, or its syntax. Raises `UserError`."""
    with _readable(path), path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        raise UserError(f"{path} is a Git LFS pointer and not the file itself", "run git lfs pull in its folder")
    if path.suffix == ".safetensors":
        read_header(path)
    elif path.suffix == ".bin" and path.name.startswith("pytorch_model") and not _is_whole_pickle(path):
        raise UserError(f"{path} is truncated, or not a file of torch.save", AGAIN)
    elif path.name in JSON_FILES:
        _read_json(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises `UserError` if the file can't be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}", AGAIN) from error


def read_header(path: Path) -> dict[str, Any]:
    """The tensors in a safetensors file, with dtype, shape and offsets: 8 bytes of length, JSON, then the data.

    Raises `UserError` for a file that is truncated or not a safetensors file.
    """
    with _readable(path):
        size = path.stat().st_size
    try:
        with _readable(path), path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + _end_of_data(tensors)
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {error}", AGAIN) from error
    if size != end:
        what = "truncated" if size < end else "longer than its tensors"
        raise UserError(f"{path} is {what}: it has {size:,} bytes, but its header gives {end:,}", AGAIN)
    return tensors


def _end_of_data(tensors: Mapping[str, Any]) -> int:
    """Where the last tensor ends, counted from the first. Raises `ValueError` if they don't follow each other."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        bits = DTYPE_BITS.get(entry["dtype"])
        if bits is None:
            raise ValueError(f"{name} has the unknown dtype {entry['dtype']}")
        if begin != end:
            raise ValueError(f"{name} begins at byte {begin:,}, and the tensor before it ends at {end:,}")
        if (after - begin) * 8 != bits * math.prod(entry["shape"]):
            raise ValueError(f"{name} has {after - begin:,} bytes, which is not its dtype times its shape")
        end = after
    return end


def read_headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """The headers of all safetensors files of a model."""
    return {path: read_header(path) for path in sorted(folder.glob("*.safetensors"))}


def _is_whole_pickle(path: Path) -> bool:
    """torch.save writes a zip file, whose list of contents is at its end; before 2020 a pickle without one."""
    with path.open("rb") as file:
        first = file.read(4)
    return zipfile.is_zipfile(path) if first.startswith(b"PK") else first.startswith(PICKLE)


def _check_shards(folder: Path) -> None:
    """Check that all files in an index exist."""
    for index in sorted(folder.glob("*.index.json")):
        weights = _read_json(index).get("weight_map")
        if not isinstance(weights, dict):
            raise UserError(f"{index} has no weight_map", AGAIN)
        if missing := sorted({str(name) for name in weights.values()} - {path.name for path in folder.iterdir()}):
            raise UserError(f"{folder} lacks {first_names(missing)}, which {index.name} names", AGAIN)


def read_config(folder: Path) -> dict[str, Any]:
    """A model's `config.json`. Raises `UserError`."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"the base model {folder} has no {CONFIG}", "give the folder that save_pretrained or hf download made"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", AGAIN) from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is not a JSON object", AGAIN)
    return read


def check_config(config: Mapping[str, Any], recipe: Recipe, where: Path | str) -> None:
    """Check that a `config.json`, read at `where`, is consistent and fits the recipe. Raises `UserError`."""
    text = text_config(config)
    for problem, fix in _problems(text, recipe):
        raise UserError(f"{where}: {problem}", fix)


def _problems(config: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    rows, pad = embedding_rows(config), config.get("pad_token_id")
    if isinstance(rows, int) and isinstance(pad, int) and not -rows <= pad < rows:
        yield (
            f"pad_token_id {pad} is outside the embedding's {rows} rows (vocab_size)",
            "set pad_token_id to a token that the model has (its eos_token_id, for example)",
        )
    ends = config.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if isinstance(rows, int) and isinstance(end, int) and end >= rows:
            yield (
                f"eos_token_id {end} is outside the embedding's {rows} rows (vocab_size)",
                "set eos_token_id to the token that ends an answer: without one the model never stops",
            )
    longest = recipe.dpo.max_length
    for key in POSITIONS:
        positions = config.get(key)
        if isinstance(positions, int) and not config.get("alibi") and longest > positions > 0:
            yield (
                f"dpo.max_length {longest} is more than the model's {positions} positions ({key})",
                f"lower dpo.max_length to {positions}",
            )
    targets = recipe.lora.target_modules if recipe.lora is not None and config.get("tie_word_embeddings") else ()
    if both := ", ".join(name for name in targets if name.rsplit(".", 1)[-1] in TIED_MODULES):
        yield (
            f"tie_word_embeddings: input and output embeddings are one matrix, and adapters of {both} can't be merged",
            f"remove {both} from lora.target_modules",
        )


def first_names(names: Iterable[str], most: int = 3) -> str:
    """The first of the sorted names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
