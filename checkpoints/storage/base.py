"""The Store contract: what a checkpoint needs from an object store, and nothing else.

One contract test (tests/contract/test_store.py) runs over every implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from checkpoints.errors import ObjectMissing

Buffer: TypeAlias = bytes | bytearray | memoryview
PIECE_BYTES = 4 << 20
"""Size of one read. Smaller pieces would stay in a core's own cache until they are checked, but threads then compete
for the GIL: 256 KiB cost 2.7 times the CPU of raw range GETs, 4 MiB 1.4, 64 MiB 1.6 (make bench, 4 connections)."""

READ_ATTEMPTS = 4
"""Bytes that look wrong this many times are wrong: once may be the network's fault."""

Seen: TypeAlias = Callable[[memoryview], None]


def ignore(piece: memoryview) -> None:
    """Discard the piece."""


class Stored(NamedTuple):
    """The bytes of an object and the token that a compare-and-swap against them needs."""

    data: bytes
    token: str


class Entry(NamedTuple):
    """One object in a listing."""

    key: str
    size_bytes: int


class Store(Protocol):
    """An object store below one URL. Keys are relative and checked by the caller (`keys.check_key`).

    Every write is all or nothing: a reader sees the whole object or none, even after a crash. `create` and `swap`
    are linearizable. A write whose reply was lost may have succeeded: `AlreadyExists` and `Conflict` can mean our
    own success, and the caller has to check (see `put_once` and `checkpoints.commit.head`).
    """

    @property
    def url(self) -> str:
        """Where this store is, without secrets, as the user would write it."""

    def reconnected(self) -> Store:
        """Return the same store with new connections."""

    def get(self, key: str) -> Stored:
        """Return the object; raises `ObjectMissing`."""

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        """Return up to `length` bytes from `start`; fewer only at the end. Raises `ObjectMissing`."""

    def read_into(self, key: str, target: memoryview, seen: Seen = ignore) -> int:
        """Fill `target` from the start of the object, as far as it goes.

        Reads straight into that memory if the store can. `seen` is called with the pieces of `target`, in order, as
        they arrive, for a checksum on the fly. If a piece has to be read again, over another connection, the object is
        read from its start and `seen` gets an empty piece first.

        Returns the object's size; if it exceeds `target`, any larger number. Raises `ObjectMissing`.
        """

    def create(self, key: str, data: Buffer) -> str:
        """Write a new object and return its token; raises `AlreadyExists`."""

    def swap(self, key: str, data: Buffer, token: str) -> str:
        """Replace the object if its token is still `token`; raises `Conflict`."""

    def put(self, key: str, data: Buffer) -> None:
        """Write the object, replacing what is there."""

    def put_file(self, key: str, path: Path) -> None:
        """Write a local file as an object, replacing what is there, without holding all of it in memory."""

    def list(self, prefix: str) -> Iterable[Entry]:
        """Yield the objects below the folder `prefix` ('' = everything), in key order."""

    def folders(self) -> Sequence[str]:
        """Names of the top-level folders, sorted; cheap, however much is in them."""

    def delete(self, key: str) -> None:
        """Remove the object; removing a missing one is fine."""


def holds(store: Store, key: str, data: Buffer) -> bool:
    """Does the object have exactly these bytes? Raises `ObjectMissing`."""
    return any(store.get(key).data == data for _ in range(READ_ATTEMPTS))


def exists(store: Store, key: str) -> bool:
    """Is there an object under this key? Reads it, so only for small ones."""
    try:
        store.get(key)
    except ObjectMissing:
        return False
    return True


FENCED = (
    "use a store with conditional writes: AWS S3, Cloudflare R2, a recent MinIO or SeaweedFS, GCS as gs://, Azure as "
    "az://, or a folder"
)
"""The hint for a user whose store can't be used."""
