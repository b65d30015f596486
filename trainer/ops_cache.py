"""DeepSpeed's compiled operators in the run's folder of the bucket: a new machine fetches them beside its imports.

    cache/ops/KEY/NAME.so       a shared object, as the compiler left it
    cache/ops/KEY/index.json    its sha256 and the run's signature of it; written last

DeepSpeed compiles an operator where it is first used: on a CPU one for its collectives, a minute of each new machine's
start. The key names all that the machine code depends on, the processor's instructions too.

A shared object is code, and a bucket is no place to take code from: who may write there could run programs on the
machines of others. So an index is signed with a key that only the run's own machines have, made from the Hugging Face
token that the launcher hands them, and nothing is loaded that isn't signed. Without a token there is no cache, and
NOTUS_OPS_CACHE=0 switches it off; the operators are then compiled, as ever.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.machinery
import importlib.util
import logging
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from checkpoints.confirm import confirmed, read_if_there
from checkpoints.errors import CorruptCheckpoint, NotusError
from checkpoints.manifest import Record
from checkpoints.store import Store

logger = logging.getLogger(__name__)

FOLDER = "cache/ops"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_BYTES = 64 << 20
MIN_TOKEN = 20
"""A shorter one is a placeholder ("none"), which anybody could guess; real ones have 37 characters."""


class OpsIndex(Record):
    """index.json."""

    files: dict[str, str]
    """sha256 by the operator's name."""
    signature: str
    """See `sign`."""


def signing_key(environment: Mapping[str, str]) -> bytes | None:
    """What only this run's machines know; None = no cache. Nobody can tell the token from it."""
    token = environment.get("HF_TOKEN", "")
    if len(token) < MIN_TOKEN or environment.get("NOTUS_OPS_CACHE") == "0":
        return None
    return hashlib.sha256(b"notus-launch: compiled operators\0" + token.encode()).digest()


def sign(secret: bytes, key: str, files: Mapping[str, str]) -> str:
    """Of these operators for machines of this key, as hex: none can be put in another's place."""
    told = "\n".join([key, *(f"{name} {files[name]}" for name in sorted(files))])
    return hmac.new(secret, told.encode(), hashlib.sha256).hexdigest()


def machine_key() -> str:
    """The key of what a compiler makes here."""
    told = (
        f"torch {version('torch')} deepspeed {version('deepspeed')} python {sys.version}",
        f"{platform.machine()} {' '.join(platform.libc_ver())}",
        _compiler(),
        *sorted(_instructions() | _gpus()),
    )
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


class OpsCache:
    """The operators of one rank."""

    def __init__(self, store: Store, folder: Path, secret: bytes | None) -> None:
        """`folder` is this rank's own; `secret`: see `signing_key`."""
        self._store, self._folder, self._secret = store, folder, secret
        self._key = ""
        self._fetched: dict[str, Path] = {}
        self._thread: threading.Thread | None = None

    def prefetch(self) -> None:
        """Begin to fetch, beside the imports."""
        if self._secret is not None:
            self._thread = threading.Thread(target=self._prefetch, name="operators", daemon=True)
            self._thread.start()

    def install(self) -> None:
        """Hand DeepSpeed what was fetched, before it looks for a compiler. What can't be loaded is compiled."""
        if self._thread is None:
            return
        self._thread.join()
        loaded = _loaded_operators()
        for name, path in list(self._fetched.items()):
            try:
                loaded[name] = load(name, path)
            except ImportError as error:
                del self._fetched[name]
                logger.warning("the operator %s of the bucket can't be loaded: %s", name, error)
            else:
                logger.info("the operator %s comes from the bucket", name)

    def publish(self) -> None:
        """What DeepSpeed has compiled here, if the bucket lacks it and answers."""
        if self._secret is None or not self._key or "deepspeed" not in sys.modules:
            return
        made = {name: Path(module.__file__ or "") for name, module in _loaded_operators().items()}
        made = {name: path for name, path in made.items() if NAME.fullmatch(name) and path.suffix == ".so"}
        if made and not made.keys() <= self._fetched.keys():
            threading.Thread(target=self._publish, args=(self._secret, made), name="operators", daemon=True).start()

    def _publish(self, secret: bytes, made: Mapping[str, Path]) -> None:
        try:
            files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
            for name, path in made.items():
                self._store.put_file(f"{FOLDER}/{self._key}/{name}.so", path)
            index = OpsIndex(files=files, signature=sign(secret, self._key, files))
            self._store.put(f"{FOLDER}/{self._key}/index.json", index.to_json())
        except (NotusError, OSError) as error:
            logger.warning("the compiled operators are not in the bucket: %s", error)

    def _prefetch(self) -> None:
        try:
            self._key = machine_key()
            self._fetch()
        except (NotusError, OSError) as error:
            logger.warning("the compiled operators of the bucket can't be used: %s", error)

    def _fetch(self) -> None:
        assert self._secret is not None
        index = read_if_there(self._store, f"{FOLDER}/{self._key}/index.json", OpsIndex)
        if index is None:
            return
        if not hmac.compare_digest(index.signature, sign(self._secret, self._key, index.files)):
            logger.warning("the compiled operators of the bucket are not signed by this run's machines: not used")
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, told in index.files.items():
            if not NAME.fullmatch(name):
                raise CorruptCheckpoint(f"{name!r} is no operator's name")
            path = self._folder / f"{name}.so"
            path.write_bytes(self._read(name, told))
            self._fetched[name] = path

    def _read(self, name: str, told: str) -> bytes:
        key = f"{FOLDER}/{self._key}/{name}.so"

        def read() -> bytes:
            data = bytes(self._store.get_range(key, 0, MAX_BYTES))
            if hashlib.sha256(data).hexdigest() != told:
                raise CorruptCheckpoint(f"{self._store.url}/{key} differs from its hash")
            return data

        return confirmed(read)


def load(name: str, path: Path) -> ModuleType:
    """The operator's module, as torch loads what it has compiled. Raises `ImportError`."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _loaded_operators() -> dict[str, ModuleType]:
    """Where DeepSpeed 0.19.8 looks before it compiles."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    found: dict[str, ModuleType] = OpBuilder._loaded_ops
    return found


def _compiler() -> str:
    try:
        done = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return "no compiler"
    return done.stdout.partition("\n")[0]


def _instructions() -> set[str]:
    """The instruction sets of this processor: with `-march=native` the code has all of them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {line for line in lines if line.startswith(("model name", "flags", "Features"))}


def _gpus() -> set[str]:
    """The models of this machine's GPUs, without torch, which isn't imported yet."""
    found = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return {line for path in found for line in path.read_text().splitlines() if line.startswith("Model")}
