"""Checks, before money is spent, whether a store can hold a run: what it writes, reads, deletes and refuses."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator

from checkpoints.errors import AlreadyExists, BucketUnusable, Conflict, NotusError, ObjectMissing, StoreError
from checkpoints.storage.base import FENCED, READ_ATTEMPTS, Store, exists, holds
from checkpoints.util.parallel import parallel_map

FOLDER = "probe"
"""Of its objects: listing it takes one request, however large the run is."""
RACERS = 4
"""Concurrent writers."""
ROUNDS = 2
"""Rounds of writing and reading in which an older version has to be seen before it counts as a fault: a late duplicate
of a write, after a lost reply, can bring it back once."""


def probe(store: Store) -> None:
    """Write, read and delete small objects, so that a wrong bucket fails before it costs money.

    Also tries writes that must be refused: a store that ignores conditions would let two machines that both believe
    they hold the run overwrite each other. And reads that must be fresh: an older HEAD is another run.

    Raises `BucketUnusable` with the reason, or `StoreError` if the store does not respond, which may be transient.
    """
    key = f"{FOLDER}/{uuid.uuid4().hex}"
    try:
        with _cleared(store, key, f"{key}-race"):
            fault = (
                _fault_of_reads(store, key) or _fault_of_fence(store, key) or _fault_of_races(store, key, f"{key}-race")
            )
            if not fault:
                _check_listing(store, f"{key}-race")
                fault = _fault_of_absence(store, f"{key}-race")
    except ObjectMissing as error:
        raise BucketUnusable(f"{store.url} can't be used: {error.message}", error.hint) from error
    if fault:
        raise BucketUnusable(
            f"{store.url} {fault}, so it can't keep a machine that was given up from overwriting its successor", FENCED
        )


@contextlib.contextmanager
def _cleared(store: Store, *keys: str) -> Iterator[None]:
    """Delete the objects at the end, even after an error, which is then the one that is raised."""
    try:
        yield
    except NotusError:
        with contextlib.suppress(NotusError):
            for key in keys:
                store.delete(key)
        raise
    for key in keys:
        store.delete(key)


def _fault_of_reads(store: Store, key: str) -> str:
    """What is wrong with reads of what was just written; '' = nothing. Leaves an object."""
    written, stale = os.urandom(16), False
    store.put(key, written)  # not `create`: a retry that finds its own success isn't the bucket's fault
    if not holds(store, key, written):
        raise BucketUnusable(f"{store.url} gave back other bytes than were written to it")
    for _ in range(ROUNDS):
        old, written = written, os.urandom(16)
        store.put(key, written)
        stale = any(store.get(key).data == old for _ in range(READ_ATTEMPTS))
        if not stale:
            return ""
    return "gives back an older version of an object that was just replaced"


def _fault_of_fence(store: Store, key: str) -> str:
    """What is wrong with conditional writes to an existing object; '' = nothing."""
    if _written(store, key, lambda: store.create(key, os.urandom(16))):
        return "replaces an object that it was asked to create"
    stale = _swap(store, key)
    if stale is None:
        return "refuses to replace an object by its token"
    if _written(store, key, lambda: store.swap(key, os.urandom(16), stale)):
        return "replaces an object by the token of an older version"
    return ""


def _fault_of_races(store: Store, key: str, place: str) -> str:
    """What is wrong with concurrent writes on the same condition, of which only one may succeed; '' = nothing.

    Leaves an object at `place`, where there was none.
    """
    token = store.get(key).token
    created = parallel_map(
        lambda data: _written(store, key, lambda: store.create(place, data)), _payloads(RACERS), RACERS
    )
    if sum(created) > 1:
        return "lets several create the same object at once"
    if not (any(created) or exists(store, place)):  # it exists if the winner's reply was lost
        return "refuses to create an object under the condition that there is none yet"
    swapped = parallel_map(
        lambda data: _written(store, key, lambda: store.swap(key, data, token)), _payloads(RACERS), RACERS
    )
    return "lets several replace an object by one token at once" if sum(swapped) > 1 else ""


def _fault_of_absence(store: Store, place: str) -> str:
    """What is wrong after a delete; '' = nothing. The name can be created again, but not replaced."""
    token = store.get(place).token
    store.delete(place)
    if any(exists(store, place) for _ in range(READ_ATTEMPTS)):
        return "gives back an object that was deleted"
    again, replaced = _payloads(2)
    if _written(store, place, lambda: store.swap(place, replaced, token)):
        return "creates an object that it was asked to replace"
    if not _written(store, place, lambda: store.create(place, again)) and not exists(store, place):
        return "refuses to create an object where one was deleted"
    return ""


def _check_listing(store: Store, place: str) -> None:
    """Raises `BucketUnusable` if listing is refused, or misses an object that was just written."""
    for _ in range(READ_ATTEMPTS):
        try:
            if any(entry.key == place for entry in store.list(FOLDER)):
                return
        except BucketUnusable as error:
            raise BucketUnusable(
                f"{store.url} can be written and read, but not listed: {error.message}",
                "grant the right to list it (s3:ListBucket, storage.objects.list)",
            ) from error
    raise BucketUnusable(f"{store.url} does not list an object that was just written", FENCED)


def _payloads(number: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(number)]


def _written(store: Store, key: str, write: Callable[[], object]) -> bool:
    """Did this conditional write succeed?

    Raises `BucketUnusable` if the store fails a conditional write while it accepts a plain write to `key`: some stores
    return 400.
    """
    try:
        write()
    except (AlreadyExists, Conflict, ObjectMissing):
        return False
    except StoreError as error:
        store.put(key, os.urandom(16))
        raise BucketUnusable(f"{store.url} takes writes, but none with a condition: {error.message}", FENCED) from error
    return True


def _swap(store: Store, key: str) -> str | None:
    """Replace the object by its token, and return the old token; None if the store refuses every time."""
    for _ in range(READ_ATTEMPTS):  # a late duplicate of an earlier write can change the token meanwhile
        token, data = store.get(key).token, os.urandom(16)
        if _written(store, key, lambda token=token, data=data: store.swap(key, data, token)):  # type: ignore[misc]
            return token
        if holds(store, key, data):  # its reply was lost, and the retry found its own success
            return token
    return None
