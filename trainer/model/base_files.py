"""Is a base model whole, and does it fit the recipe? Told from its files, without torch and before anything is loaded.

Where weights are missing transformers trains on random numbers and says so in a line of its log only, and what doesn't
fit becomes an index error in the first step, on a GPU an assertion of the device. Each of these is a `UserError` here,
with the file and the way out.
"""

from __future__ import annotations

import json
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
LFS_POINTER = b"version https://git-lfs.github.com/spec"
POSITIONS = ("max_position_embeddings", "n_positions")
"""Keys of a `config.json` for the longest sequence that a model was made for. Others have no such limit (ALiBi)."""
TIED_MODULES = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings")
"""What input and output embeddings are called."""
AGAIN = "fetch that file again: hf download MODEL --local-dir FOLDER"


def check_local_base(recipe: Recipe) -> None:
    """Check a base model that is a local folder; others pass: the Hub's are checked once they are fetched.

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
    """Are all files of a model whole, as far as their beginnings and sizes tell? Raises `UserError` naming the file."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{path} is a Git LFS pointer and not the file itself",
                    "in its folder: git lfs pull",
                )
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".bin" and path.name.startswith("pytorch_model") and not _is_whole_pickle(path):
            raise UserError(f"{path} is cut off or no file of torch.save", AGAIN)
    _check_shards(folder)


def read_header(path: Path) -> dict[str, Any]:
    """The tensors that a safetensors file names, with dtype, shape and place: 8 bytes of length, JSON, then the data.

    Raises `UserError` for a file that is cut off or none of that kind.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is no whole safetensors file: {error}", AGAIN) from error
    if size != end:
        what = "cut off" if size < end else "longer than its tensors"
        raise UserError(f"{path} is {what}: it has {size:,} bytes, and its header tells {end:,}", AGAIN)
    return tensors


def read_headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """Of all safetensors files of a model."""
    return {path: read_header(path) for path in sorted(folder.glob("*.safetensors"))}


def _is_whole_pickle(path: Path) -> bool:
    """torch.save writes a zip file, whose list of contents is at its end; before 2020 a pickle without one."""
    with path.open("rb") as file:
        return not file.read(4).startswith(b"PK") or zipfile.is_zipfile(path)


def _check_shards(folder: Path) -> None:
    """Are all files there that an index names?"""
    for index in sorted(folder.glob("*.index.json")):
        weights = _read_json(index).get("weight_map")
        if not isinstance(weights, dict):
            raise UserError(f"{index} has no weight_map", AGAIN)
        if missing := sorted({str(name) for name in weights.values()} - {path.name for path in folder.iterdir()}):
            raise UserError(f"{folder} lacks {some(missing)}, which {index.name} names", AGAIN)


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
    """Does a model with this `config.json`, read at `where`, fit itself and the recipe? Raises `UserError`."""
    text = text_config(config)
    for problem, fix in _problems(text, recipe):
        raise UserError(f"{where}: {problem}", fix)


def _problems(config: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    rows, pad = embedding_rows(config), config.get("pad_token_id")
    if isinstance(rows, int) and isinstance(pad, int) and not -rows <= pad < rows:
        yield (
            f"pad_token_id {pad} is outside of the embedding's {rows} rows (vocab_size)",
            "set pad_token_id to a token that the model has (its eos_token_id, for example)",
        )
    ends = config.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if isinstance(rows, int) and isinstance(end, int) and end >= rows:
            yield (
                f"eos_token_id {end} is outside of the embedding's {rows} rows (vocab_size)",
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
            f"take {both} out of lora.target_modules",
        )


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of some names in order, and how many more there are."""
    told = sorted(names)
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
