"""Tokenized pairs in the run's folder of the bucket: a restart neither loads nor tokenizes the data set again.

    cache/tokens/KEY/train.arrow, evaluation.arrow    Arrow streams of int32 token ids
    cache/tokens/KEY/index.json                       their hashes and the raw rows' fingerprint; written last

The key covers everything that determines the ids: the sets, their local files' bytes, the lengths, the tokenizer. A hub
data set without a pinned revision stays as the run's first attempt saw it, even if it changes later.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from checkpoints.errors import CorruptCheckpoint, NotusError
from checkpoints.records.file_transfer import fetch_file, hash_file
from checkpoints.records.manifest import Record, parse
from checkpoints.records.verified_reads import read_if_there
from checkpoints.storage.base import Store
from trainer.config.recipe import Recipe
from trainer.data.preference_pairs import local_path
from trainer.runtime.attempt_dir import replace_file

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from trainer.data.dataset import Pairs

logger = logging.getLogger(__name__)

FOLDER = "cache/tokens"
INDEX = "index.json"
TRAIN, EVALUATION = "train.arrow", "evaluation.arrow"
KEY = re.compile(r"[0-9a-f]{32}")


class TokenIndex(Record):
    """index.json."""

    fingerprint: str
    files: dict[str, str]
    """xxh3-128 by name."""


def tokens_key(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """The key of a recipe's token ids."""
    paths = [local_path(source) for source in recipe.dataset.sources]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    inputs = {
        "format": 2,
        "dataset": recipe.identity["dataset"],
        "files": [
            hash_file(path) if path else _hash_folder(Path(source.name))
            for path, source in zip(paths, recipe.dataset.sources, strict=True)
        ],
        "lengths": [recipe.dpo.max_length, recipe.dpo.max_prompt_length],
        "tokenizer": xxhash.xxh3_128_hexdigest(vocabulary.encode()),
        "template": tokenizer.chat_template,
        "special": str(tokenizer.special_tokens_map),
        "versions": [version(name) for name in ("tokenizers", "transformers", "datasets")],
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(inputs, sort_keys=True).encode())


def _hash_folder(folder: Path) -> str | None:
    """The hash of all files of a local data set; None for a set on the Hub."""
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
    return xxhash.xxh3_128_hexdigest(json.dumps(hashes).encode())


class TokenCache:
    """The pairs of a run: in the bucket, and in a folder that the ranks of a machine share."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._thread: threading.Thread | None = None

    def prefetch(self) -> None:
        """Start fetching from the bucket during the imports: a run has one key, unless a version has changed."""
        self._thread = threading.Thread(target=self._prefetch, name="tokens", daemon=True)
        self._thread.start()

    def fetch(self, key: str) -> bool:
        """Fetch into the folder unless it is there; returns whether it is. Damaged files count as missing."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            return self._fetch(key)
        except (NotusError, OSError) as error:
            logger.warning("the tokenized pairs in the bucket can't be used: %s", error)
            return False

    def load(self, key: str) -> Pairs:
        """The pairs from the folder, mapped into memory."""
        import datasets

        from trainer.data.dataset import Pairs

        folder = self._folder / key
        index = parse(TokenIndex, (folder / INDEX).read_bytes(), str(folder / INDEX))
        train, *evaluation = (datasets.Dataset.from_file(str(folder / name)) for name in _names(index))
        return Pairs(train, evaluation[0] if evaluation else None, index.fingerprint)

    def keep(self, key: str, pairs: Pairs) -> None:
        """Write the pairs into the folder."""
        folder = self._folder / key
        folder.mkdir(parents=True, exist_ok=True)
        sets = {TRAIN: pairs.train} | ({} if pairs.evaluation is None else {EVALUATION: pairs.evaluation})
        for name, rows in sets.items():
            _write(rows, folder / name)
        index = TokenIndex(fingerprint=pairs.fingerprint, files={name: hash_file(folder / name) for name in sets})
        replace_file(folder / INDEX, index.to_json())

    def publish(self, key: str) -> None:
        """Copy from the folder into the bucket, if it responds. Another attempt's files are the same, and replaced."""
        folder = self._folder / key
        try:
            for name in (*_names(parse(TokenIndex, (folder / INDEX).read_bytes(), INDEX)), INDEX):
                self._store.put_file(f"{FOLDER}/{key}/{name}", folder / name)
        except NotusError as error:
            logger.warning("can't put the tokenized pairs into the bucket: %s", error.message)

    def _prefetch(self) -> None:
        try:
            keys = {entry.key.split("/")[2] for entry in self._store.list(FOLDER)}
            if len(keys) == 1 and KEY.fullmatch(key := keys.pop()):
                self._fetch(key)
        except (NotusError, OSError) as error:
            logger.info("can't prefetch tokenized pairs: %s", error)

    def _fetch(self, key: str) -> bool:
        folder = self._folder / key
        if (folder / INDEX).is_file():
            return True
        index = read_if_there(self._store, f"{FOLDER}/{key}/{INDEX}", TokenIndex)
        if index is None:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for name in _names(index):
            fetch_file(self._store, f"{FOLDER}/{key}/{name}", folder / name, index.files[name])
        replace_file(folder / INDEX, index.to_json())
        logger.info("the tokenized pairs come from the bucket")
        return True


def _names(index: TokenIndex) -> list[str]:
    """The files, checked against our own names: a bucket's names can't be used as paths. Raises `CorruptCheckpoint`."""
    names = [name for name in (TRAIN, EVALUATION) if name in index.files]
    if TRAIN not in names or len(names) != len(index.files):
        raise CorruptCheckpoint(f"an index of tokenized pairs names the files {', '.join(sorted(index.files))}")
    return names


def _write(rows: datasets.Dataset, path: Path) -> None:
    import datasets
    import pyarrow

    narrow = datasets.Features({name: datasets.Sequence(datasets.Value("int32")) for name in rows.column_names})
    table: Any = rows.flatten_indices().cast(narrow).data.table
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
