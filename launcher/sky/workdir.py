"""The folder that is sent to the machine: our code, and the user's recipe with its data file.

From a checkout, the working tree is sent, so that local changes run; from an installed release, a wheel of the
installed files. The package index is used for our dependencies, never for our own package.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import launcher
from launcher.errors import RequestError
from launcher.sky.setup.release_wheel import repack
from trainer.config.recipe import Recipe, builtin_names, data_path
from trainer.config.yaml_model import load_settings

TREE = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "launcher", "trainer", "checkpoints")
RECIPE = "recipe.yaml"
SEND_ALL = """\
# Everything here is needed. Without this file SkyPilot leaves out what git would ignore, also by the .gitignore of a
# repository *around* this folder: a home that is one, or NOTUS_HOME in a project.
"""


class Workdir(NamedTuple):
    """A folder for SkyPilot to send to the machine."""

    folder: Path
    recipe: str
    """The recipe argument for `notus-train` there."""
    release: str | None
    """File name of the wheel to install, if it isn't the folder itself."""


def prepare_workdir(recipe: str, folder: Path, checkout: Path | None = None) -> Workdir:
    """Fill `folder` from scratch. Raises `RequestError` for a data file that can't be sent with the recipe."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / ".skyignore").write_text(SEND_ALL)
    root = checkout or find_checkout()
    release = None
    if root is None:
        shutil.copy(Path(launcher.__file__).parent / "data/constraints.txt", folder)
        release = repack(folder).name
    else:
        for name in TREE:
            _copy(root / name, folder / name)
    return Workdir(folder, _recipe(recipe, folder), release)


def find_checkout() -> Path | None:
    """The root of the working tree that this code runs from, or None for an installed package."""
    root = Path(launcher.__file__).parents[1]
    try:
        text = (root / "pyproject.toml").read_text()
    except OSError:
        return None
    return root if re.search(r'^name = "notus-launch"$', text, re.MULTILINE) else None


def _recipe(name_or_path: str, folder: Path) -> str:
    if name_or_path in builtin_names():
        return name_or_path
    path = Path(name_or_path)
    shutil.copy(path, folder / RECIPE)
    written = load_settings(Recipe, path)
    for name in filter(None, (source.file_name for source in written.dataset.sources)):
        data, beside = data_path(name, path.parent), path.resolve().parent
        if Path(name).is_absolute() or not data.resolve().is_relative_to(beside):
            raise RequestError(
                f"the data file {name} can't be sent with the recipe",
                f"put it below {beside} and write its path relative to the recipe, or use a hub data set",
            )
        target = folder / data.resolve().relative_to(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data, target)
    return RECIPE


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    else:
        shutil.copy(source, target)
