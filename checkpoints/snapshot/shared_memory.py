"""Memory that two processes share: the trainer copies its state in, the uploader sends it from there.

A file in /dev/shm: both processes map it, and a restart of the run on the same machine finds it by name.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from checkpoints.util import owner_locks

SHM = Path(os.environ.get("NOTUS_SHM") or "/dev/shm")  # noqa: S108  # shared memory is the point
"""Where snapshots are: another folder in memory, if the environment names one."""


class RunMemory:
    """The shared buffers of one run on this machine: a folder per writer, with a file per rank.

    In /dev/shm; if that is too small a buffer moves to the temporary folder. A process that is killed leaves its
    folder behind: its successor may restore from it, and removes it. A live process holds a lock on its folder, which
    the kernel releases when it dies, so no other process, such as a fenced predecessor, removes its memory.
    """

    def __init__(self, run_url: str) -> None:
        temporary = Path(tempfile.gettempdir())
        self._roots = (SHM if SHM.is_dir() else temporary, temporary)
        self._prefix = f"notus-{xxhash.xxh3_64_hexdigest(run_url.encode())}-"

    def hold(self, writer_id: str) -> None:
        """Make the private folders of a writer and keep them while this process is alive."""
        for folder in self._folders(writer_id):
            owner_locks.hold(folder)

    def snapshot(self, writer_id: str, rank: int) -> Path:
        """Path of the buffer of a rank of that writer; creates nothing."""
        return self._folders(writer_id)[0] / f"r{rank}"

    def fallback(self, writer_id: str, rank: int) -> Path:
        """The path if /dev/shm is too small. Another name, because without a /dev/shm both are in one folder."""
        return self._folders(writer_id)[1] / f"f{rank}"

    def left_by(self, writer_id: str, rank: int) -> Path | None:
        """Path of the buffer that a predecessor's rank left on this machine, or None."""
        places = (self.snapshot(writer_id, rank), self.fallback(writer_id, rank))
        return next((path for path in places if path.exists()), None) if writer_id else None

    def forget(self, writer_id: str) -> None:
        """Free the memory of a writer: of this process or its children. Processes that still map it keep it."""
        for folder in self._folders(writer_id):
            shutil.rmtree(folder, ignore_errors=True)

    def remove_dead(self, keep: str = "") -> None:
        """Free the memory that dead writers have left, except that of `keep` in this run.

        For every run: the other ones may never come back to this machine, and 7 to 100 GB would be lost until it is
        rebooted. Their successors restore from the bucket.
        """
        for root in set(self._roots):
            for folder in root.glob("notus-*"):
                if _FOLDER.fullmatch(folder.name) and folder.name != f"{self._prefix}{keep}":
                    _remove_if_dead(folder)

    def _folders(self, writer_id: str) -> tuple[Path, Path]:
        first, second = (root / f"{self._prefix}{writer_id}" for root in self._roots)
        return first, second


_FOLDER = re.compile(r"notus-[0-9a-f]{16}-[A-Za-z0-9-]{1,64}")


def _remove_if_dead(folder: Path) -> None:
    with contextlib.suppress(OSError), owner_locks.dead(folder) as dead:  # gone already, or another user's
        if dead:
            shutil.rmtree(folder, ignore_errors=True)


Pin = Callable[[memoryview], Callable[[], None]]
"""Makes memory fast for a device to write to, and returns the function that undoes it."""


class SharedBuffer:
    """One growing, reused buffer in a file.

    The first touch of a fresh page costs about 15 times the copy itself (storage-facts): pages are touched once, when
    the buffer grows, and kept.

    Containers often have a /dev/shm of 64 MiB. If it is too small the buffer moves to `fallback`: a file elsewhere
    works the same through the page cache, except that the kernel may write it to disk. `path` is where it is.

    `pin` is called with the whole buffer each time it is mapped.
    """

    def __init__(self, path: Path, fallback: Path | None = None, pin: Pin | None = None) -> None:
        self.path = path
        self._fallback = fallback
        self._pin = pin
        self._unpin: Callable[[], None] = _nothing
        self._map: mmap.mmap | None = None

    def reserve(self, size_bytes: int) -> memoryview:
        """The first `size_bytes` bytes, writable, grown if needed. Old contents may be lost when it grows."""
        if self._map is None or len(self._map) < size_bytes:
            self._release()
            self._map = None  # views of the old mapping keep it alive until they are gone
            rounded = max(1, -(-size_bytes // mmap.PAGESIZE)) * mmap.PAGESIZE
            self._map = self._grow(rounded)
            _touch(self._map)
            if self._pin is not None:
                self._unpin = self._pin(memoryview(self._map))
        return memoryview(self._map)[:size_bytes]

    def _grow(self, size_bytes: int) -> mmap.mmap:
        try:
            return _map_file(self.path, size_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC or self._fallback is None:
                raise
            self.unlink()
            self.path, self._fallback = self._fallback, None
            return _map_file(self.path, size_bytes)

    def unlink(self) -> None:
        """Free the memory once no process maps it."""
        self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        unpin, self._unpin = self._unpin, _nothing
        unpin()


def _nothing() -> None:
    """The unpin function if nothing is pinned."""


def open_shared(path: Path, size_bytes: int) -> memoryview:
    """Map an existing buffer for reading. Raises `OSError` if it is not there or smaller."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < size_bytes:
            raise OSError(f"{path} is smaller than {size_bytes} bytes")
        if not size_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))[:size_bytes]


def _map_file(path: Path, size_bytes: int) -> mmap.mmap:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < size_bytes:
            # posix_fallocate instead of truncate: a full /dev/shm is an error here, not a SIGBUS in the copy
            os.posix_fallocate(descriptor, 0, size_bytes)
        return mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _touch(memory: mmap.mmap) -> None:
    """Fault every page in, keeping its content."""
    pages = np.frombuffer(memory, dtype=np.uint8)[:: mmap.PAGESIZE]
    pages |= 0
