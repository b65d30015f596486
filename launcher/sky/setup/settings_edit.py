"""Change SkyPilot's settings files: all of them or none, and nothing but the requested changes.

A draft reads each file once, collects the changes, and writes at the end: every file is first composed and checked,
then staged next to its target, then put in place by a rename. A failure leaves the files unchanged. A file keeps its
comments, its mode, its owner and its place behind a symbolic link.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.errors import RequestError
from launcher.sky.setup.settings import BOM, load, read_text, round_trip
from trainer.config.yaml_model import plain


class Document:
    """One file of a draft."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = read_text(path)
        self.config = load(path, self._before.text)
        self._wanted = copy.deepcopy(plain(self.config))
        self.changed = False

    def put(self, keys: tuple[str, ...], value: Any) -> None:
        """Set a value; missing or empty parent sections are created."""
        for config in (self.config, self._wanted):
            at = config
            for key in keys[:-1]:
                if at.get(key) is None:
                    at[key] = {}
                at = at[key]
            at[keys[-1]] = copy.deepcopy(value)
        self.changed = True

    def append(self, key: str, value: Any) -> None:
        """Append to a list, which is created if it is missing or empty."""
        for config in (self.config, self._wanted):
            if config.get(key) is None:
                config[key] = []
            config[key].append(copy.deepcopy(value))
        self.changed = True

    def compose(self) -> bytes:
        """The new content. Raises `RequestError` if it would contain more than the requested changes."""
        stream = io.StringIO()
        round_trip().dump(self.config, stream)
        text = self._only_comments() + stream.getvalue()
        if plain(load(self.path, text)) != self._wanted:  # for example an anchor that is used in two sections
            raise RequestError(
                f"{self.path} is written in a way that can't be changed safely", f"change it to {self._wanted}"
            )
        before = self._before
        return ((BOM if before.has_bom else "") + text.replace("\n", before.newline)).encode()

    def _only_comments(self) -> str:
        """The old text if it has only comments, which the parser drops."""
        lines = self._before.text.splitlines()
        if any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            return ""
        return "".join(f"{line}\n" for line in lines)


class Draft:
    """Changes to several files."""

    def __init__(self) -> None:
        self._documents: dict[Path, Document] = {}

    def document(self, path: Path) -> Document:
        """The file with the changes so far. Raises `RequestError` if it can't be read."""
        return self._documents.setdefault(path, self._documents.get(path) or Document(path))

    def save(self, prepare: Callable[[], None]) -> None:
        """Write all changes; `prepare` is called after staging, when only it can still fail.

        Raises `RequestError`, and whatever `prepare` raises, with all files unchanged.
        """
        contents = {one.path: one.compose() for one in self._documents.values() if one.changed}
        with contextlib.ExitStack() as stack:
            staged = [stack.enter_context(_staged(path, content)) for path, content in contents.items()]
            prepare()
            with contextlib.ExitStack() as undo:
                for one in staged:
                    one.commit(undo)
                undo.pop_all()


class _Staged:
    """New content on disk, next to the file that it will replace."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self.temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        self._old = self.temporary.with_name(f"{self.temporary.name}.old")

    def commit(self, undo: contextlib.ExitStack) -> None:
        """Put it in place, and register how to restore the old file with `undo`."""
        with _named(self._path):
            if self._target.exists():
                self._old.hardlink_to(self._target)
                undo.callback(self._old.replace, self._target)
            else:
                undo.callback(self._target.unlink, missing_ok=True)
            self.temporary.replace(self._target)

    def forget(self) -> None:
        """Remove temporary files next to the target."""
        for path in (self.temporary, self._old):
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _staged(path: Path, content: bytes) -> Iterator[_Staged]:
    with contextlib.ExitStack() as made:  # undoing has no effect on a file that was put in place
        with _named(path):
            target = path.resolve()
            _make_folder(target.parent, made)
            staged = _Staged(path, target)
            made.callback(staged.forget)
            _write(staged.temporary, content, target)
        yield staged


def _make_folder(folder: Path, made: contextlib.ExitStack) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent, made)
        folder.mkdir()
        made.callback(_remove_if_empty, folder)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _write(temporary: Path, content: bytes, target: Path) -> None:
    """Write with the owner, mode and attributes of the file that it will replace."""
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise OSError(0, "it is not a regular file")
    if old is not None and not os.access(target, os.W_OK):
        raise OSError(0, "it is write-protected")
    if old is not None and old.st_nlink > 1:
        raise OSError(0, "it has several hard links, and a safe write would cut them")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if old is None else 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if old is not None:
            if (old.st_uid, old.st_gid) != (os.fstat(descriptor).st_uid, os.fstat(descriptor).st_gid):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            shutil.copystat(target, temporary)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: circular symbolic links
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{path} can't be written: {reason}; nothing was changed", "make it writable, or write it by hand"
        ) from error
