"""What the clients of all object stores share: timeouts, retries, signed requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from checkpoints.errors import BucketUnusable, UserError
from checkpoints.storage.presigned import Request

BucketStore: TypeAlias = S3Store | GCSStore | AzureStore

# The client itself retries 5xx and broken connections, with back-off, up to these bounds. A conditional write
# that is retried can lose to its own first try: callers compare nonces or bytes (storage-facts, step 5).
RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=120)}
SIGNED_FOR = timedelta(minutes=10)

# The client's own limit of 30 s for a whole request is too short for a chunk of 64 MiB on a slow link, which could then
# never be saved. For a machine that vanishes we need no limit: the kernel gives up 30 s after the last acknowledged
# byte (the client sets TCP_USER_TIMEOUT).
CONNECT_S = 10.0
ANSWER_S = 30.0
"""How long the store may send nothing: before its response, and between two pieces of it. The client counts from the
start of the request, so this has to include the upload of a body."""
REQUEST_S = 600.0
"""Longest request. A store that accepts a whole chunk and never responds is given up after this; a chunk of 64 MiB
needs 0.11 MB/s, and 32 connections (8 ranks of 4) that share a link need 29 Mbit/s."""


@contextlib.contextmanager
def opening(url: str, hint: str) -> Iterator[None]:
    """Turn the client's refusal to open `url` into a `BucketUnusable` with this hint."""
    try:
        yield
    except BaseError as error:
        raise BucketUnusable(f"can't open {url}: {first_line(error)}", hint) from error


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """The parts of `scheme://bucket/prefix`. Raises `UserError` for a URL without a bucket."""
    parts = urlsplit(url)
    if not parts.netloc:
        raise UserError(f"bucket {url!r} names no bucket", f"write {parts.scheme}://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def limits() -> tuple[dict[str, Any], dict[str, Any]]:
    """The clients' timeouts: for reads and small writes, and for large writes."""
    bulk = {"connect_timeout": timedelta(seconds=CONNECT_S), "timeout": timedelta(seconds=REQUEST_S)}
    return {**bulk, "read_timeout": timedelta(seconds=ANSWER_S)}, bulk


def signing(store: BucketStore) -> Callable[[str], Request]:
    """Return a function that signs a GET of a key with the credentials of `store`, valid for `SIGNED_FOR`."""

    def sign(key: str) -> Request:
        try:
            return Request(obstore.sign(store, "GET", key, SIGNED_FOR), {})
        except BaseError as error:
            raise OSError(f"can't sign: {first_line(error)}") from error

    return sign


def first_line(error: BaseException) -> str:
    """The first line of the client's message: the others are its own debugging output."""
    return str(error).split("\n", 1)[0][:300]
