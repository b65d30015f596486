"""The Store contract over any store that obstore supports. The backends' modules open them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import obstore
import stamina
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore

from checkpoints.errors import (
    AccessDenied,
    AlreadyExists,
    BucketUnusable,
    Conflict,
    ObjectMissing,
    StoreError,
)
from checkpoints.storage.base import FENCED, Buffer, Entry, Seen, Stored, ignore
from checkpoints.storage.obstore_client import BucketStore, first_line
from checkpoints.storage.presigned import Request, SignedReader

SMALL_BYTES = 1 << 20
"""Up to this size (HEAD, manifests, indexes) an upload takes less than `ANSWER_S`, and the client waits no longer for
the response: a lease would run out in `REQUEST_S`."""

logger = logging.getLogger(__name__)


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""The stores' own codes, which obstore passes on only in the text."""


class _Transient(StoreError):
    """Worth a retry: a broken connection, a malformed response."""


class _Busy(AlreadyExists):
    """The store is processing another conditional write to the same key (AWS: 409 ConditionalRequestConflict)."""


# obstore itself retries 5xx, but not a connection that breaks during a conditional write or a delete: it can't know
# whether the operation took effect. Our callers can (nonces, same bytes), so here everything is retried.
_retried = stamina.retry(on=_Transient, attempts=6, timeout=120, wait_initial=0.1, wait_max=5.0)
_retried_while_busy = stamina.retry(on=_Busy, attempts=6, timeout=20, wait_initial=0.1, wait_max=2.0)
"""For `create`; obstore retries a `swap` itself. Busy for longer isn't due to another writer: it is a refusal."""


class ObjectStore:
    """The Store contract over an obstore store."""

    def __init__(
        self,
        store: BucketStore | MemoryStore,
        url: str,
        bulk: BucketStore | None = None,
        direct: Callable[[str], Request] | None = None,
        again: Callable[[], ObjectStore] | None = None,
        compared_by: Literal["e_tag", "version"] = "e_tag",
        credentials: str = "",
    ) -> None:
        """Wrap an obstore store.

        Args:
            store: obstore's client for the bucket, or its store in memory.
            url: where the store is.
            bulk: the same store through a client with long timeouts for large uploads.
            direct: makes the request for a plain GET.
            again: opens the same store with new clients.
            compared_by: obstore's name for what a conditional write compares. GCS compares generations, never ETags,
                and obstore calls those versions.
            credentials: where this backend finds its credentials, as a hint for a user who is refused.
        """
        self._store = store
        self._bulk = bulk or store
        self._url = url
        self._compared_by = compared_by
        self._credentials = credentials
        self._direct = SignedReader(direct) if direct else None
        self._again = again

    @classmethod
    def memory(cls) -> ObjectStore:
        """An empty store in memory: the public fake, for tests and examples."""
        return cls(MemoryStore(), "memory://")

    @property
    def url(self) -> str:
        return self._url

    def reconnected(self) -> ObjectStore:
        return self if self._again is None else self._again()

    @_retried
    def get(self, key: str) -> Stored:
        with self._errors(key):
            result = obstore.get(self._store, key)
            return Stored(bytes(result.bytes()), self._token(result.meta))

    @_retried
    def get_range(self, key: str, start: int, length: int) -> memoryview:
        with self._errors(key):
            try:
                return memoryview(obstore.get_range(self._store, key, start=start, length=length))
            except GenericError:
                # S3 returns 416 for a range that starts at or beyond the end, for example of an empty object.
                if obstore.head(self._store, key)["size"] <= start:
                    return memoryview(b"")
                raise

    def read_into(self, key: str, target: memoryview, seen: Seen = ignore) -> int:
        if self._direct is not None and len(target):
            with self._errors(key):
                try:
                    return self._direct.read_into(key, target, seen)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    logger.info("%s: reading through obstore instead: %s", key, error)
        # One byte more than wanted shows whether there is more.
        data = self.get_range(key, 0, len(target) + 1)
        target[: data.nbytes] = data[: len(target)]
        seen(target[:0])
        seen(target[: data.nbytes])
        return data.nbytes

    @_retried_while_busy
    @_retried
    def create(self, key: str, data: Buffer) -> str:
        with self._errors(key):
            return self._token(obstore.put(self._sender(data), key, data, mode="create", use_multipart=False))

    @_retried
    def swap(self, key: str, data: Buffer, token: str) -> str:
        expected: Any = {self._compared_by: token}
        try:
            with self._errors(key):
                return self._token(obstore.put(self._sender(data), key, data, mode=expected, use_multipart=False))
        except _Busy as error:
            raise Conflict(error.message) from error

    @_retried
    def put(self, key: str, data: Buffer) -> None:
        with self._errors(key):
            obstore.put(self._sender(data), key, data)

    @_retried
    def put_file(self, key: str, path: Path) -> None:
        with self._errors(key):
            obstore.put(self._bulk, key, path, chunk_size=16 << 20)

    def list(self, prefix: str) -> Iterator[Entry]:
        yield from self._list(prefix)

    @_retried
    def _list(self, prefix: str) -> Sequence[Entry]:
        with self._errors(prefix):
            batches = obstore.list(self._store, prefix or None)
            return sorted(Entry(meta["path"], meta["size"]) for batch in batches for meta in batch)

    @_retried
    def folders(self) -> Sequence[str]:
        with self._errors(""):
            result = obstore.list_with_delimiter(self._store)
        return sorted(prefix.strip("/").rsplit("/", 1)[-1] for prefix in result["common_prefixes"])

    @_retried
    def delete(self, key: str) -> None:
        with self._errors(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def _sender(self, data: Buffer) -> BucketStore | MemoryStore:
        return self._store if memoryview(data).nbytes <= SMALL_BYTES else self._bulk

    def _token(self, meta: Any) -> str:
        token = meta[self._compared_by]
        if not isinstance(token, str):
            raise StoreError(
                f"{self._url} answers without {self._compared_by}, so writes can't be fenced",
                FENCED,
            )
        return token

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = f"{self._url}/{key}"
        try:
            yield
        except AlreadyExistsError as error:
            if "ConditionalRequestConflict" in str(error):  # the store's own code, passed on only in the text
                raise _Busy(f"{where}: {first_line(error)}") from error
            raise AlreadyExists(f"{where} exists already") from error
        except PreconditionError as error:
            raise Conflict(f"{where} has changed") from error
        except (FileNotFoundError, NotFoundError) as error:
            if any(code in str(error) for code in _NO_BUCKET):
                raise BucketUnusable(
                    f"the bucket of {self._url} does not exist", "create it first, or check the name"
                ) from error
            raise ObjectMissing(f"{where} does not exist") from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            hint = f"{self._credentials}. The key needs to read, write, list and delete below the bucket"
            raise AccessDenied(f"{self._url} refuses access: {first_line(error)}", hint) from error
        except (BaseError, OSError) as error:
            if "NotImplemented" in str(error):  # also the store's own code; a retry would fail the same way
                raise BucketUnusable(f"{self._url} can't do what it was asked for: NotImplemented", FENCED) from error
            raise _Transient(f"{where}: {first_line(error)}") from error
