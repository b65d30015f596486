"""A Store in a local folder, crash-safe: write a temporary file, fsync, link or rename it, fsync the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import quote

import xxhash

from checkpoints.errors import AlreadyExists, BucketUnusable, Conflict, ObjectMissing, StoreError
from checkpoints.storage.backend import SHORT
from checkpoints.storage.base import PIECE_BYTES, Buffer, Entry, Seen, Stored, ignore

_HINTS = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space, or choose another --bucket; what was committed is safe",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another --bucket"),
    errno.EACCES: ("no permission", "give this user the right to write there, or choose another --bucket"),
    errno.EPERM: ("no permission", "give this user the right to write there, or choose another --bucket"),
    errno.EROFS: ("the file system is read-only", "choose another --bucket"),
    errno.ENOTDIR: ("it is not a folder", "choose a folder as --bucket"),
}


TEMPORARY_S = 3600.0
"""A temporary file that is older than this, and not locked, was left by a killed writer."""


class FolderStore:
    """A folder as an object store. obstore's LocalStore has no compare-and-swap, and does not fsync.

    Create-once is a hard link, which the kernel makes atomic; the compare-and-swap of HEAD is a lock file and a
    rename. Works for processes on one machine, and on network file systems with working flock and link.
    """

    def __init__(self, bucket: Path, prefix: str = "") -> None:
        self._bucket = bucket  # has to exist: a mistyped path is an error, not a new empty bucket
        self._root = bucket / prefix
        self._tmp = self._root / ".tmp"
        self._collected = False

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    def get(self, key: str) -> Stored:
        with self._errors(key):
            data = (self._root / key).read_bytes()
            return Stored(data, _token(data))

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        with self._errors(key), (self._root / key).open("rb") as file:
            return memoryview(os.pread(file.fileno(), length, start))

    def reconnected(self) -> FolderStore:
        return self  # there are no connections

    def read_into(self, key: str, target: memoryview, seen: Seen = ignore) -> int:
        with self._errors(key), (self._root / key).open("rb", buffering=0) as file:
            position = 0
            while position < len(target) and (count := file.readinto(target[position : position + PIECE_BYTES])):
                seen(target[position : position + count])
                position += count
            return os.fstat(file.fileno()).st_size

    def create(self, key: str, data: Buffer) -> str:
        with self._errors(key), self._temporary(data) as temporary:
            target = self._target(key)
            os.link(temporary, target)
            _sync_folder(target.parent)
        return _token(data)

    def swap(self, key: str, data: Buffer, token: str) -> str:
        with self._errors(key), self._temporary(data) as temporary, self._locked(key):
            target = self._target(key)
            if not target.exists() or _token(target.read_bytes()) != token:
                raise Conflict(f"{key} has changed")
            temporary.replace(target)
            _sync_folder(target.parent)
        return _token(data)

    def put(self, key: str, data: Buffer) -> None:
        with self._errors(key), self._temporary(data) as temporary:
            target = self._target(key)
            temporary.replace(target)
            _sync_folder(target.parent)

    def put_file(self, key: str, path: Path) -> None:
        with self._errors(key), path.open("rb") as source, self._temporary(source) as temporary:
            target = self._target(key)
            temporary.replace(target)
            _sync_folder(target.parent)

    def list(self, prefix: str) -> Iterator[Entry]:
        folder = self._root / prefix
        with self._errors(prefix):
            names = sorted(folder.iterdir(), key=lambda path: path.name) if folder.is_dir() else []
        for path in names:
            if path.name.startswith("."):
                continue
            key = path.relative_to(self._root).as_posix()
            if path.is_dir():
                yield from self.list(key)
            else:
                with contextlib.suppress(FileNotFoundError):  # deleted while we list
                    yield Entry(key, path.stat().st_size)

    def folders(self) -> Sequence[str]:
        if self._root.exists() and not self._root.is_dir():
            raise BucketUnusable(f"{self._root} is not a folder", f"give a folder, {SHORT}")
        with self._errors(""):
            found = self._root.iterdir() if self._root.is_dir() else ()
            return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))

    def delete(self, key: str) -> None:
        with self._errors(key):
            if not self._lock_of(key).exists():
                (self._root / key).unlink(missing_ok=True)
                return
            with self._locked(key):
                (self._root / key).unlink(missing_ok=True)
                self._lock_of(key).unlink(missing_ok=True)

    def _target(self, key: str) -> Path:
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextlib.contextmanager
    def _temporary(self, data: Buffer | BinaryIO) -> Iterator[Path]:
        """A file containing `data`, synced to disk, and deleted at the end unless it was renamed."""
        if not self._bucket.is_dir():
            raise self._no_bucket()
        self._tmp.mkdir(parents=True, exist_ok=True)
        if not self._collected:
            self._collected = True
            _collect_dead(self._tmp)
        path = self._tmp / uuid.uuid4().hex
        try:
            with path.open("xb") as file:
                with contextlib.suppress(OSError):  # no locks here: then no collector can lock it either
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if isinstance(data, bytes | bytearray | memoryview):
                    file.write(data)
                else:
                    shutil.copyfileobj(data, file, length=16 << 20)
                file.flush()
                os.fsync(file.fileno())
                yield path  # open, and thus locked, until it is linked or renamed
        finally:
            path.unlink(missing_ok=True)

    def _lock_of(self, key: str) -> Path:
        return self._root / ".locks" / quote(key, safe="")

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._lock_of(key)
        path.parent.mkdir(exist_ok=True)
        while True:  # again whenever the object is deleted during the wait
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_at(lock, path):
                    continue
                yield
                return

    def _no_bucket(self) -> BucketUnusable:
        return BucketUnusable(f"the bucket file://{self._bucket} does not exist", f"create it: mkdir -p {self._bucket}")

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if not self._bucket.is_dir():
                raise self._no_bucket() from error
            raise ObjectMissing(f"{self.url}/{key} does not exist") from error
        except FileExistsError as error:
            raise AlreadyExists(f"{self.url}/{key} exists already") from error
        except OSError as error:
            if error.errno in _HINTS:
                reason, hint = _HINTS[error.errno]
                raise BucketUnusable(f"can't write to the bucket {self.url}: {reason}", hint) from error
            raise StoreError(f"{self.url}/{key}: {error}") from error


def _collect_dead(folder: Path) -> None:
    """Remove what killed writers left in `folder`: up to 4 chunks of 64 MiB per killed rank.

    A live writer holds its file's lock until the file has its name; the kernel drops a dead writer's lock. The minimum
    age covers the moment between opening and locking, and files whose locking failed.
    """
    newest = time.time() - TEMPORARY_S
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # in use, or another writer was faster
            if path.stat().st_mtime < newest:
                with path.open("r+b") as file:  # NFS gives an exclusive lock only on a file that is open for writing
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _is_at(file: IO[str], path: Path) -> bool:
    """Is this open file still the one at `path`? A lock on a deleted file keeps no writer out."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _token(data: Buffer) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
