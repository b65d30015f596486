"""A folder that is complete or absent, and that records what made it."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from checkpoints.util import owner_locks

MARK = ".notus.json"
"""What made the folder, and its files' sizes. Not pushed."""
CARD = "README.md"
"""May be edited before a push: its size doesn't matter."""


@contextlib.contextmanager
def whole_folder(folder: Path, made: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write to, which gets its name once it is complete, so that a partial one is never used.

    Args:
        folder: new, or empty.
        made: everything that determines its content, as JSON; see `is_whole`.

    Raises `UserError` if the folder isn't empty: two results must not mix.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", "give a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        owner_locks.hold(partial, alone=True)
    except BlockingIOError as error:
        raise UserError(f"another process is writing {folder}", "wait until it has finished") from error
    try:
        _empty(partial)  # left by a process that was killed
        yield partial
        (partial / owner_locks.LOCK).unlink()
        mark = {"made": made, "sizes": _sizes(partial)}
        (partial / MARK).write_text(json.dumps(mark, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        owner_locks.release(partial)


def _empty(folder: Path) -> None:
    """Delete everything but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != owner_locks.LOCK:
            path.unlink()


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder inside one that is being made; if the process is killed, both are removed together."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as temporary:
        yield Path(temporary)


def is_whole(folder: Path, made: Mapping[str, Any]) -> bool:
    """Was this folder made by `whole_folder` with the same `made`, and is no file missing, added or resized since?

    Compares sizes and reads no file. Raises `UserError` for a folder that `whole_folder` made and that has changed.
    """
    try:
        mark = json.loads((folder / MARK).read_bytes())
        before = mark["made"], mark["sizes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if before[0] != json.loads(json.dumps(made)):
        return False
    now = _sizes(folder)
    if changed := sorted(name for name in {*before[1], *now} if before[1].get(name) != now.get(name)):
        raise UserError(
            f"{folder} has changed since it was made: {', '.join(changed)}",
            "delete it and run the same command again, or give a new folder",
        )
    return True


def _sizes(folder: Path) -> dict[str, int]:
    """File sizes in bytes, by name; 0 for the card, which may change."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: 0 if name == CARD else path.stat().st_size for name, path in names.items() if name != MARK}
