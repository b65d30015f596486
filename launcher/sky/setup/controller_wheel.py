"""Our package as a wheel, which SkyPilot installs on a jobs controller with its own VM.

SkyPilot 0.14.1 installs each wheel file name once. A checkout's version doesn't change with its code, so the file name
also contains a hash of the content, in the build tag that PEP 427 allows.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from checkpoints.util.interpreter import environment, module
from launcher.errors import RequestError
from launcher.sky.setup.release_wheel import build_tag, installed_name, repack
from launcher.sky.workdir import TREE, find_checkout

OURS = "notus_launch-*.whl"


def find(folder: Path) -> Path | None:
    """The wheel of the running code, if it is the only one of ours in the folder, because SkyPilot installs all."""
    wheels = list(folder.glob(OURS))
    return wheels[0] if len(wheels) == 1 and _is_current(wheels[0].name) else None


def build(folder: Path) -> Path:
    """Put the wheel of the running code into the folder, and remove our older ones.

    From a checkout, the working tree is built by pip, which uses the index for build tools; from an installed release,
    the installed files are packed. Raises `RequestError` if pip fails.
    """
    checkout = find_checkout()
    with tempfile.TemporaryDirectory() as scratch:
        if checkout is None:
            made = repack(Path(scratch))
            name = made.name
        else:
            pip_wheel(str(checkout), Path(scratch))
            (made,) = Path(scratch).glob(OURS)
            name = _tagged(made.name, _tag(checkout))
        folder.mkdir(parents=True, exist_ok=True)
        wheel, content = folder / name, made.read_bytes()
    for old in folder.glob(OURS):
        old.unlink()
    wheel.write_bytes(content)
    return wheel


def pip_wheel(what: str, folder: Path) -> None:
    """Build a wheel of a folder or a requirement with pip, without dependencies."""
    command = [*module("pip"), "wheel", "--no-deps", what]
    quietly = ["--quiet", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    done = subprocess.run([*command, *quietly], capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise RequestError(
            f"pip can't build the wheel for the jobs controller: {lines[-1]}",
            f"for the full output run: {' '.join(command)}",
        )


def _is_current(name: str) -> bool:
    checkout = find_checkout()
    if checkout is None:
        return name == installed_name()
    return name.split("-")[2:3] == [_tag(checkout)]


def _tagged(name: str, tag: str) -> str:
    package, release, rest = name.split("-", 2)
    return f"{package}-{release}-{tag}-{rest}"


def _tag(checkout: Path) -> str:
    paths = sorted(path for name in TREE for path in _files(checkout / name))
    return build_tag((str(path.relative_to(checkout)), path.read_bytes()) for path in paths)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts]
