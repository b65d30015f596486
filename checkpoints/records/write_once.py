"""Records that are written once: a retry that finds its own bytes has succeeded."""

from __future__ import annotations

from checkpoints.errors import AlreadyExists
from checkpoints.storage.base import Buffer, Store, holds


def put_once(store: Store, key: str, data: Buffer) -> None:
    """Create an object under a key that only we use.

    A create whose reply was lost is retried by the client and then finds its own object, which is a success if the
    bytes are the same. Raises `AlreadyExists` if they differ.
    """
    try:
        store.create(key, data)
    except AlreadyExists:
        if not holds(store, key, data):
            raise
