"""A folder that is there whole or not at all, and that says what made it."""

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
"""What made the folder, and its files' sizes. It is not pushed."""
CARD = "README.md"
"""May be edited before a push: its size doesn't matter."""


@contextlib.contextmanager
def whole_folder(folder: Path, made: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write to, which gets its name when all of it is there: nobody takes half of it for the whole.

    Args:
        folder: new, or empty.
        made: all that decides its content, as JSON; see `is_whole`.

    Raises `UserError` where something is in it already: two results must not mix.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", "give a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        owner_locks.hold(partial, alone=True)
    except BlockingIOError as error:
        raise UserError(f"another process is writing {folder}", "wait until it has ended") from error
    try:
        _empty(partial)  # of one who was killed
        yield partial
        (partial / owner_locks.LOCK).unlink()
        mark = {"made": made, "sizes": _sizes(partial)}
        (partial / MARK).write_text(json.dumps(mark, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        owner_locks.let_go(partial)


def _empty(folder: Path) -> None:
    """All but the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != owner_locks.LOCK:
            path.unlink()


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder inside of one that is being made: what a killed process leaves goes with that."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as temporary:
        yield Path(temporary)


def is_whole(folder: Path, made: Mapping[str, Any]) -> bool:
    """Was this folder made by `whole_folder` of the same `made`, with nothing missing, added or cut since?

    It compares sizes and reads no file. Raises `UserError` for a folder of ours that isn't as it was made.
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
            f"{folder} isn't as it was made: {', '.join(changed)}",
            "delete it and give the same command again, or give a new folder",
        )
    return True


def _sizes(folder: Path) -> dict[str, int]:
    """In bytes, by name; of the card only that it is there."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: 0 if name == CARD else path.stat().st_size for name, path in names.items() if name != MARK}
