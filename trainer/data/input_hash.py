"""A hash of what a machine was given to run: the recipe, its local data, this code.

Two attempts with the same hash differ only in their machines, so what worked in the first isn't the recipe's fault.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import xxhash

from trainer.config.recipe import Recipe
from trainer.data.preference_pairs import local_path

PACKAGES = ("checkpoints", "trainer")
PIECE_BYTES = 16 << 20


def inputs_digest(recipe: Recipe) -> str:
    """Hash a run's inputs: its recipe, the code, and its local data and model files.

    The path of a local file or folder isn't part of it, because it differs between clouds. Models and data sets on the
    Hub count by name and revision only.
    """
    settings = recipe.model_dump(mode="json")
    for source in (settings["dataset"], *settings["dataset"]["also"], settings["model"]):
        if Path(source["name"]).exists():
            source["name"] = Path(source["name"]).name
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(code_digest().encode())
    for source in recipe.dataset.sources:
        if (path := local_path(source)) is not None and path.is_file():
            digest.update(_file_digest(path).encode())
    for path in _model_files(Path(recipe.model.name)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


@cache
def code_digest() -> str:
    """A hash of the packages that run on the machine, from a checkout or installed."""
    digest = xxhash.xxh3_128()
    for package in PACKAGES:
        root = Path(str(files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _model_files(folder: Path) -> Iterator[Path]:
    """The files of a local base model; none for a hub name. Their content is compared on restore."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file())
