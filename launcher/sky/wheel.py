"""Our package as a wheel, which SkyPilot installs on a jobs controller that has a VM of its own.

SkyPilot 0.14.1 installs a wheel once by the name of its file. A checkout's version is the same before and after a
change, so the name of its wheel also tells the content: in the build tag that PEP 427 allows.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from checkpoints.interpreter import module
from launcher.errors import RequestError
from launcher.sky.sent import TREE, find_checkout

OURS = "notus_launch-*.whl"
TAG_DIGITS = 12


def find(folder: Path) -> Path | None:
    """The wheel of the code that runs here, if it is in the folder and no other of ours is: SkyPilot installs all."""
    found = list(folder.glob(OURS))
    return found[0] if len(found) == 1 and _is_current(found[0].name) else None


def build(folder: Path) -> Path:
    """Put the wheel of the code that runs here into the folder, and take our older ones out of it.

    From a checkout it is its working tree, from an installed release the same version, from the package index. Asks the
    index, in a checkout for the build's own tools. Raises `RequestError` where pip can't make it.
    """
    checkout = find_checkout()
    with tempfile.TemporaryDirectory() as scratch:
        pip_wheel(str(checkout) if checkout else f"notus-launch=={version('notus-launch')}", Path(scratch))
        (made,) = Path(scratch).glob(OURS)
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / (_tagged(made.name, _tag(checkout)) if checkout else made.name)
        content = made.read_bytes()
    for old in folder.glob(OURS):
        old.unlink()
    wheel.write_bytes(content)
    return wheel


def pip_wheel(what: str, folder: Path) -> None:
    """Let pip make a wheel of a folder or a requirement, without those that it depends on."""
    command = [*module("pip"), "wheel", "--no-deps", what]
    quietly = ["--quiet", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    done = subprocess.run([*command, *quietly], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise RequestError(
            f"pip can't make the wheel for the jobs controller: {said[-1]}",
            f"see all that it says: {' '.join(command)}",
        )


def _is_current(name: str) -> bool:
    checkout = find_checkout()
    if checkout is None:
        return name.split("-")[1:3] == [version("notus-launch"), "py3"]
    return name.split("-")[2:3] == [_tag(checkout)]


def _tagged(name: str, tag: str) -> str:
    package, release, rest = name.split("-", 2)
    return f"{package}-{release}-{tag}-{rest}"


def _tag(checkout: Path) -> str:
    """A build tag begins with a digit, and its leading digits are a number: so one digit and a letter come first."""
    content = hashlib.sha256()
    for path in sorted(path for name in TREE for path in _files(checkout / name)):
        content.update(f"{path.relative_to(checkout)}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return f"0h{content.hexdigest()[:TAG_DIGITS]}"


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts]
