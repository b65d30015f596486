"""Whole files out of a store, with their hash."""

from __future__ import annotations

from pathlib import Path

import xxhash

from checkpoints.confirm import confirmed
from checkpoints.errors import CorruptCheckpoint
from checkpoints.store import Store

PIECE_BYTES = 64 << 20


def hash_file(path: Path) -> str:
    """xxh3-128 of a local file, as hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def fetch_file(store: Store, key: str, path: Path, told: str) -> None:
    """Fetch an object into a file, a piece at a time. Raises `CorruptCheckpoint` where its hash isn't `told`."""

    def fetch() -> None:
        digest, start = xxhash.xxh3_128(), 0
        with path.open("wb") as file:
            while piece := store.get_range(key, start, PIECE_BYTES):
                digest.update(piece)
                file.write(piece)
                start += len(piece)
        if digest.hexdigest() != told:
            raise CorruptCheckpoint(f"{store.url}/{key} differs from its hash")

    confirmed(fetch)
