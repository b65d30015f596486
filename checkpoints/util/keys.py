"""Names that may become part of an object key or a path, checked before they are used."""

from __future__ import annotations

import re

from checkpoints.errors import InvalidName

_RUN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SEGMENT = re.compile(r"[A-Za-z0-9_=+@][A-Za-z0-9._=+@-]*")
MAX_KEY_LENGTH = 900  # S3 and GCS allow 1024 bytes; the rest is for the user's prefix


def check_run_name(name: str) -> str:
    """Return `name` if it is a valid run name, else raise `InvalidName`.

    The rule is that of SkyPilot job names and DNS labels, so that the bucket, the job and the tracker can share a
    name: at most 63 lower-case letters, digits and inner dashes.
    """
    if not _RUN.fullmatch(name):
        raise InvalidName(
            f"{name!r} is not a run name",
            f"use 1 to 63 lower-case letters, digits and dashes, for example {suggest_run_name(name)!r}",
        )
    return name


def is_run_name(name: str) -> bool:
    """Could this be the name of a run?"""
    return _RUN.fullmatch(name) is not None


def check_key(key: str) -> str:
    """Return `key` if it is a safe relative object key, else raise `InvalidName`.

    Every key that is read *from* a bucket is checked here before it becomes part of a path: no empty, hidden or `..`
    segments, no leading slash, no backslash, no control characters.
    """
    segments = key.split("/")
    if len(key) > MAX_KEY_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise InvalidName(
            f"{key!r} is not a safe object key",
            "keys are segments of letters, digits and ._=+@- joined by '/', none starting with a dot",
        )
    return key


def suggest_run_name(name: str) -> str:
    """The nearest valid run name."""
    return re.sub(r"-+", "-", re.sub(r"[^a-z0-9]+", "-", name.lower())).strip("-")[:63] or "my-run"
