"""Downloads whole files from a store and checks their hashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import xxhash

from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.verified_reads import reread
from checkpoints.storage.base import Buffer, Store

PIECE_BYTES = 64 << 20


class Hasher(Protocol):
    """The common interface of xxhash and hashlib."""

    def update(self, data: Buffer, /) -> None: ...
    def hexdigest(self) -> str: ...


def hash_file(path: Path, hasher: Callable[[], Hasher] = xxhash.xxh3_128) -> str:
    """The hash of a local file, as hex."""
    digest = hasher()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def fetch_file(
    store: Store, key: str, path: Path, expected: str, hasher: Callable[[], Hasher] = xxhash.xxh3_128
) -> None:
    """Fetch an object into a file, in pieces. Raises `CorruptCheckpoint` if its hash isn't `expected`."""

    def fetch() -> None:
        with path.open("wb") as file:
            _read(store, key, expected, hasher(), file.write)

    reread(fetch)


def check_object(store: Store, key: str, expected: str) -> None:
    """Read an object without keeping it. Raises `CorruptCheckpoint` if its xxh3-128 isn't `expected`."""
    reread(lambda: _read(store, key, expected, xxhash.xxh3_128(), lambda piece: None))


def _read(store: Store, key: str, expected: str, digest: Hasher, take: Callable[[memoryview], object]) -> None:
    start = 0
    while piece := store.get_range(key, start, PIECE_BYTES):
        digest.update(piece)
        take(piece)
        start += len(piece)
    if digest.hexdigest() != expected:
        raise CorruptCheckpoint(f"{store.url}/{key} differs from its hash")
