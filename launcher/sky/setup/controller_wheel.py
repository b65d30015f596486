"""Our package as a wheel, which SkyPilot installs on a jobs controller that has a VM of its own.

SkyPilot 0.14.1 installs a wheel once by the name of its file. A checkout's version is the same before and after a
change, so the name of its wheel also tells the content: in the build tag that PEP 427 allows.
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
    """The wheel of the code that runs here, if it is in the folder and no other of ours is: SkyPilot installs all."""
    found = list(folder.glob(OURS))
    return found[0] if len(found) == 1 and _is_current(found[0].name) else None


def build(folder: Path) -> Path:
    """Put the wheel of the code that runs here into the folder, and take our older ones out of it.

    From a checkout it is its working tree, built by pip, which asks the index for the build's own tools; from an
    installed release the installed files. Raises `RequestError` where pip can't make it.
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
    """Let pip make a wheel of a folder or a requirement, without those that it depends on."""
    command = [*module("pip"), "wheel", "--no-deps", what]
    quietly = ["--quiet", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    done = subprocess.run([*command, *quietly], capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise RequestError(
            f"pip can't make the wheel for the jobs controller: {said[-1]}",
            f"see all that it says: {' '.join(command)}",
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
