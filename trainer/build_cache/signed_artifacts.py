"""Compiled code in the run's folder of the bucket: a machine uses only what another machine of the run has signed.

    FOLDER/NAME          a file, as the compiler wrote it
    FOLDER/index.json    the files' sha256 and their signature; written last

Code from a bucket can't be trusted: whoever may write there could run programs on other people's machines. So an index
is signed with a key that only the run's own machines have, derived from the Hugging Face token that the launcher gives
them, and nothing unsigned is used. Without a token nothing is kept, and NOTUS_CODE_CACHE=0 disables the cache; the code
is then compiled as usual.
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
"""A shorter token is a placeholder ("none") that anyone could guess; real ones have 37 characters."""


class SignedIndex(Record):
    """index.json."""

    files: dict[str, str]
    """sha256 by the file's name."""
    signature: str
    """See `sign`."""


def signing_key(environment: Mapping[str, str]) -> bytes | None:
    """A key that only this run's machines have; None = no cache. It doesn't reveal the token."""
    token = environment.get("HF_TOKEN", "")
    if len(token) < MIN_TOKEN or environment.get("NOTUS_CODE_CACHE") == "0":
        return None
    return hashlib.sha256(b"notus-launch: compiled code\0" + token.encode()).digest()


def sign(secret: bytes, folder: str, files: Mapping[str, str]) -> str:
    """The signature of this folder's files, as hex: it covers their names, so none can replace another."""
    listed = "\n".join([folder, *(f"{name} {files[name]}" for name in sorted(files))])
    return hmac.new(secret, listed.encode(), hashlib.sha256).hexdigest()


class SignedFiles:
    """A folder of signed files."""

    def __init__(self, store: Store, folder: str, secret: bytes) -> None:
        """`folder`: its name covers everything that the code depends on; `secret`: see `signing_key`."""
        self._store, self._folder, self._secret = store, folder, secret

    def fetch(self, target: Path) -> dict[str, Path]:
        """Fetch the files into the folder `target` and return them by name; none if they aren't signed.

        Raises `CorruptCheckpoint` if one differs from what was signed, `StoreError` as the store does.
        """
        index = read_if_there(self._store, f"{self._folder}/index.json", SignedIndex)
        if index is None:
            return {}
        if not hmac.compare_digest(index.signature, sign(self._secret, self._folder, index.files)):
            logger.warning("%s in the bucket is not signed by this run's machines: not used", self._folder)
            return {}
        target.mkdir(parents=True, exist_ok=True)
        found = {}
        for name, digest in index.files.items():
            if not NAME.fullmatch(name):
                raise CorruptCheckpoint(f"{name!r} is not a file name")
            found[name] = target / name
            fetch_file(self._store, f"{self._folder}/{name}", found[name], digest, hashlib.sha256)
        return found

    def publish(self, files: Mapping[str, Path]) -> None:
        """Write the files, the index last. Raises `StoreError`, `OSError`."""
        hashes = {name: hash_file(path, hashlib.sha256) for name, path in files.items()}
        for name, path in files.items():
            self._store.put_file(f"{self._folder}/{name}", path)
        index = SignedIndex(files=hashes, signature=sign(self._secret, self._folder, hashes))
        self._store.put(f"{self._folder}/index.json", index.to_json())

    def mark(self, name: str) -> None:
        """Leave an empty marker beside the files. It isn't code and needs no signature. Raises `StoreError`."""
        self._store.put(f"{self._folder}/{name}", b"")

    def marked(self, name: str) -> bool:
        """Is there a marker of that name? Raises `StoreError`."""
        return any(entry.key == f"{self._folder}/{name}" for entry in self._store.list(self._folder))
