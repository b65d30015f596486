"""Compiled code in the run's folder of the bucket: a machine takes only what another machine of the run has signed.

    FOLDER/NAME          a file, as the compiler left it
    FOLDER/index.json    the files' sha256 and the signature of them; written last

A bucket is no place to take code from: who may write there could run programs on the machines of others. So an index is
signed with a key that only the run's own machines have, made from the Hugging Face token that the launcher hands them,
and nothing is used that isn't signed. Without a token nothing is kept, and NOTUS_CODE_CACHE=0 switches it off; the code
is then compiled, as ever.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.file_transfer import fetch_file, hash_file
from checkpoints.records.manifest import Record
from checkpoints.records.verified_reads import read_if_there
from checkpoints.storage.base import Store

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
MIN_TOKEN = 20
"""A shorter one is a placeholder ("none"), which anybody could guess; real ones have 37 characters."""


class SignedIndex(Record):
    """index.json."""

    files: dict[str, str]
    """sha256 by the file's name."""
    signature: str
    """See `sign`."""


def signing_key(environment: Mapping[str, str]) -> bytes | None:
    """What only this run's machines know; None = no cache. Nobody can tell the token from it."""
    token = environment.get("HF_TOKEN", "")
    if len(token) < MIN_TOKEN or environment.get("NOTUS_CODE_CACHE") == "0":
        return None
    return hashlib.sha256(b"notus-launch: compiled code\0" + token.encode()).digest()


def sign(secret: bytes, folder: str, files: Mapping[str, str]) -> str:
    """Of the files of this folder, as hex: none can be put in another's place."""
    told = "\n".join([folder, *(f"{name} {files[name]}" for name in sorted(files))])
    return hmac.new(secret, told.encode(), hashlib.sha256).hexdigest()


class SignedFiles:
    """One folder of them."""

    def __init__(self, store: Store, folder: str, secret: bytes) -> None:
        """`folder` names all that the code depends on; `secret`: see `signing_key`."""
        self._store, self._folder, self._secret = store, folder, secret

    def fetch(self, target: Path) -> dict[str, Path]:
        """The files that are there, by name, in the folder `target`; none where they aren't signed.

        Raises `CorruptCheckpoint` where one differs from what was signed, `StoreError` as the store does.
        """
        index = read_if_there(self._store, f"{self._folder}/index.json", SignedIndex)
        if index is None:
            return {}
        if not hmac.compare_digest(index.signature, sign(self._secret, self._folder, index.files)):
            logger.warning("%s of the bucket is not signed by this run's machines: not used", self._folder)
            return {}
        target.mkdir(parents=True, exist_ok=True)
        found = {}
        for name, told in index.files.items():
            if not NAME.fullmatch(name):
                raise CorruptCheckpoint(f"{name!r} is no file's name")
            found[name] = target / name
            fetch_file(self._store, f"{self._folder}/{name}", found[name], told, hashlib.sha256)
        return found

    def publish(self, files: Mapping[str, Path]) -> None:
        """Put them there, the index last. Raises `StoreError`, `OSError`."""
        told = {name: hash_file(path, hashlib.sha256) for name, path in files.items()}
        for name, path in files.items():
            self._store.put_file(f"{self._folder}/{name}", path)
        index = SignedIndex(files=told, signature=sign(self._secret, self._folder, told))
        self._store.put(f"{self._folder}/index.json", index.to_json())

    def mark(self, name: str) -> None:
        """Leave an empty note beside them, which is no code and needs no signature. Raises `StoreError`."""
        self._store.put(f"{self._folder}/{name}", b"")

    def marked(self, name: str) -> bool:
        """Raises `StoreError`."""
        return any(entry.key == f"{self._folder}/{name}" for entry in self._store.list(self._folder))
