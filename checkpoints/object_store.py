"""A Store on S3, GCS or memory. obstore moves the bytes, boto3 finds the S3 credentials."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
from obstore.store import GCSStore, MemoryStore, S3Store

from checkpoints.errors import (
    AccessDenied,
    AlreadyExists,
    BucketUnusable,
    Conflict,
    ObjectMissing,
    StoreError,
    UserError,
)
from checkpoints.gcs_access import MachineAccess, credentials
from checkpoints.s3_location import s3_location
from checkpoints.signed_reader import Request, SignedReader
from checkpoints.store import FENCED, Buffer, Entry, Seen, Stored, ignore

# The client retries 5xx and broken connections by itself, with back-off, up to these bounds. A conditional write
# that is retried can lose to its own first try: callers compare nonces or bytes (storage-facts, step 5).
_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=120)}
SIGNED_FOR = timedelta(minutes=10)

# The client's own limit of 30 s for a whole request is too short for a chunk of 64 MiB on a slow link, which could then
# never be saved. A machine that vanishes needs no limit of ours: the kernel gives up 30 s after the last byte that
# was acknowledged (the client sets TCP_USER_TIMEOUT).
CONNECT_S = 10.0
ANSWER_S = 30.0
"""Longest silence of the store: before its answer, and between two pieces of it. The client counts it from the start
of the request, so a body on its way up has to fit in."""
REQUEST_S = 600.0
"""Longest request. A store that takes a whole chunk and never answers is given up after this; a chunk of 64 MiB needs
0.11 MB/s, and 32 connections (8 ranks of 4) that share a link 29 Mbit/s."""
SMALL_BYTES = 1 << 20
"""Up to this size (HEAD, manifests, indexes) an upload takes less than `ANSWER_S`, and its answer is waited for no
longer: a lease would run out in `REQUEST_S`."""

logger = logging.getLogger(__name__)


class _Transient(StoreError):
    """Worth another try: a broken connection, an answer that makes no sense."""


class _Busy(AlreadyExists):
    """The store has another conditional write to the same key in hand (AWS: 409 ConditionalRequestConflict)."""


# obstore itself retries 5xx, but not a connection that breaks under a conditional write or a delete: it can't know
# whether the deed was done. Our callers can (nonces, same bytes), so here everything is tried again.
_retried = stamina.retry(on=_Transient, attempts=6, timeout=120, wait_initial=0.1, wait_max=5.0)
_retried_while_busy = stamina.retry(on=_Busy, attempts=6, timeout=20, wait_initial=0.1, wait_max=2.0)
"""Of a `create`; obstore retries a `swap` itself. Busy for longer isn't another writer's doing: it is a refusal."""


class ObjectStore:
    """The Store contract over an obstore store."""

    def __init__(
        self,
        store: S3Store | GCSStore | MemoryStore,
        url: str,
        bulk: S3Store | GCSStore | None = None,
        direct: Callable[[str], Request] | None = None,
        again: Callable[[], ObjectStore] | None = None,
    ) -> None:
        """`again` opens the same place with clients of its own."""
        self._store = store
        self._bulk = bulk or store  # the same bucket through a client that is patient with large uploads
        self._url = url
        # GCS compares generations on write, never ETags; obstore calls a generation a version.
        self._token_field = "version" if url.startswith("gs://") else "e_tag"
        self._direct = SignedReader(direct) if direct else None
        self._again = again

    @classmethod
    def open(cls, url: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
        """Open `s3://bucket/prefix` or `gs://bucket/prefix`; raises `UserError` for a URL without a bucket."""
        parts = urlsplit(url)
        bucket, prefix = parts.netloc, parts.path.strip("/")
        if not bucket:
            raise UserError(f"bucket {url!r} names no bucket", "write s3://bucket/prefix")
        try:
            if parts.scheme == "gs":
                gcs, gcs_bulk = _gcs_stores(bucket, prefix, environment or {})
                access = _gcs_access(gcs, bucket, prefix, {**os.environ, **(environment or {})})
                return cls(gcs, url, gcs_bulk, access, lambda: cls.open(url, environment))
            s3, s3_bulk = _s3_stores(bucket, prefix, os.environ if environment is None else environment)
            return cls(s3, url, s3_bulk, _signing(s3), lambda: cls.open(url, environment))
        except BaseError as error:
            raise BucketUnusable(f"can't open {url}: {_first_line(error)}", _CREDENTIALS_HINT) from error

    @classmethod
    def memory(cls) -> ObjectStore:
        """An empty store in memory: the public fake, for tests and examples."""
        return cls(MemoryStore(), "memory://")

    @property
    def url(self) -> str:
        return self._url

    def afresh(self) -> ObjectStore:
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
                # S3 answers 416 to a range that starts at or behind the end, of an empty object for example.
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
                    logger.info("%s: reading the slow way: %s", key, error)
        # One byte more than asked for tells whether there is more.
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
        expected: Any = {self._token_field: token}
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

    def _sender(self, data: Buffer) -> S3Store | GCSStore | MemoryStore:
        return self._store if memoryview(data).nbytes <= SMALL_BYTES else self._bulk

    def _token(self, meta: Any) -> str:
        token = meta[self._token_field]
        if not isinstance(token, str):
            raise StoreError(
                f"{self._url} answers without {self._token_field}, so writes can't be fenced",
                "use a store with conditional writes: S3, R2, GCS (gs://), or a folder",
            )
        return token

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = f"{self._url}/{key}"
        try:
            yield
        except AlreadyExistsError as error:
            if "ConditionalRequestConflict" in str(error):  # the store's own code, which obstore passes on in the text
                raise _Busy(f"{where}: {_first_line(error)}") from error
            raise AlreadyExists(f"{where} exists already") from error
        except PreconditionError as error:
            raise Conflict(f"{where} has changed") from error
        except (FileNotFoundError, NotFoundError) as error:
            if "NoSuchBucket" in str(error):  # the store's own code, which obstore passes on in the text only
                raise BucketUnusable(
                    f"the bucket of {self._url} does not exist", "create it first, or check the name"
                ) from error
            raise ObjectMissing(f"{where} does not exist") from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise AccessDenied(f"{self._url} refuses access: {_first_line(error)}", _CREDENTIALS_HINT) from error
        except (BaseError, OSError) as error:
            if "NotImplemented" in str(error):  # the store's own code, too; its answer will be the same tomorrow
                raise BucketUnusable(f"{self._url} can't do what it was asked for: NotImplemented", FENCED) from error
            raise _Transient(f"{where}: {_first_line(error)}") from error


_CREDENTIALS_HINT = (
    "S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION or a profile (AWS_ENDPOINT_URL for R2 and others); "
    "GCS: GOOGLE_APPLICATION_CREDENTIALS. The key needs to read, write, list and delete below the bucket"
)


def _limits() -> tuple[dict[str, Any], dict[str, Any]]:
    """How long the clients wait: for reads and small writes, and for large writes."""
    bulk = {"connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=REQUEST_S)}
    return {**bulk, "read_timeout": timedelta(seconds=ANSWER_S)}, bulk


def _gcs_stores(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[GCSStore, GCSStore]:
    """The bucket, with the client for small and the one for large writes."""
    key = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY")  # of somebody else; else whatever this process has
    config: Any = {"service_account_key": key} if key else {}
    # GCS itself is always asked by https; the key file of a test server names an http:// one.
    options: list[Any] = [{**limits, "allow_http": True} for limits in _limits()]
    small, bulk = (
        GCSStore(bucket, prefix=prefix or None, retry_config=_RETRY, client_options=each, **config) for each in options
    )
    return small, bulk


def _gcs_access(
    store: GCSStore, bucket: str, prefix: str, environment: Mapping[str, str]
) -> Callable[[str], Request] | None:
    """How to GET with the credentials that obstore uses; None for a person's login, which can't sign here."""
    found = credentials(environment)
    if found is None:
        return MachineAccess(bucket, prefix, environment).request
    return _signing(store) if found.get("private_key") and not found.get("disable_oauth") else None


def _signing(store: S3Store | GCSStore) -> Callable[[str], Request]:
    def sign(key: str) -> Request:
        try:
            return Request(obstore.sign(store, "GET", key, SIGNED_FOR), {})
        except BaseError as error:
            raise OSError(f"can't sign: {_first_line(error)}") from error

    return sign


def _s3_stores(bucket: str, prefix: str, environment: Mapping[str, str]) -> tuple[S3Store, S3Store]:
    """As `_gcs_stores`."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        if os.environ.get(name) == "":
            del os.environ[name]  # a task file's way to say "AWS's own"; obstore and boto3 would take it literally
    session = boto3.Session(
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=environment.get("AWS_SESSION_TOKEN"),
    )
    if session.get_credentials() is None:
        raise AccessDenied(f"no credentials for s3://{bucket}", _CREDENTIALS_HINT)
    # Signing the payload costs a SHA-256 of every byte: 0.67 instead of 0.21 CPU-s/GB. TLS protects the bytes on the
    # way, and every chunk has its CRC32C. AWS, R2 and MinIO take unsigned payloads.
    config: dict[str, Any] = {"unsigned_payload": True}
    region, endpoint = s3_location(environment, profiles=environment is os.environ)
    allow_http = {}
    if endpoint:
        if (urlsplit(endpoint).hostname or "").endswith(".googleapis.com"):
            raise UserError(
                f"s3://{bucket} at {endpoint} is GCS through its S3 interface, which has no compare-and-swap",
                f"write gs://{bucket}, and unset AWS_ENDPOINT_URL",
            )
        if endpoint.startswith("http://"):  # test servers
            allow_http = {"allow_http": True}
    region = region or "us-east-1"
    config |= {
        "prefix": prefix or None,
        # Always: obstore would look into this process's environment by rules of its own, and take an endpoint that is
        # ignored, or another user's.
        "region": region,
        "aws_endpoint_url_s3": endpoint or f"https://s3.{region}.amazonaws.com",
        "virtual_hosted_style_request": False,
        "credential_provider": Boto3CredentialProvider(session),
        "retry_config": _RETRY,
    }
    options: list[Any] = [{**limits, **allow_http} for limits in _limits()]
    small, bulk = (S3Store(bucket, client_options=each, **config) for each in options)
    return small, bulk


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:300]
