"""DeepSpeed's compiled operators in the run's folder of the bucket: a new machine fetches them during its imports.

    cache/ops/KEY/NAME.so    a shared object, as the compiler wrote it

DeepSpeed compiles an operator on first use: on a CPU the one for its collectives, a minute of each new machine's start.
The key covers everything that the machine code depends on, including the processor's instructions. This is code: see
`signed_artifacts` for which files are trusted.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import logging
import platform
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from checkpoints.errors import NotusError
from checkpoints.storage.base import Store
from trainer.build_cache.ops_build_folder import KeptOperators
from trainer.build_cache.signed_artifacts import NAME, SignedFiles

logger = logging.getLogger(__name__)

FOLDER = "cache/ops"


def machine_key() -> str:
    """The key of what a compiler makes on this machine."""
    parts = (
        f"torch {version('torch')} deepspeed {version('deepspeed')} python {sys.version}",
        f"{platform.machine()} {' '.join(platform.libc_ver())}",
        _compiler(),
        *sorted(_instructions() | _gpus()),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class OpsCache:
    """The operators of one rank."""

    def __init__(self, store: Store, folder: Path, secret: bytes | None, kept: KeptOperators) -> None:
        """`folder`: this rank's own; `secret`: see `signing_key`; `kept`: the operators on this machine."""
        self._store, self._folder, self._secret, self._kept = store, folder, secret, kept
        self._files: SignedFiles | None = None
        self._fetched: dict[str, Path] = {}
        self._thread: threading.Thread | None = None

    def prefetch(self) -> None:
        """Start fetching, in the background of the imports."""
        if self._secret is not None:
            self._thread = threading.Thread(target=self._prefetch, args=(self._secret,), name="operators", daemon=True)
            self._thread.start()

    def install(self) -> bool:
        """Give DeepSpeed the kept or fetched operators before it needs a compiler; returns whether there were any.

        Operators that can't be loaded are compiled.
        """
        if self._thread is not None:
            self._thread.join()
        kept = {name: path for name, path in self._kept.find().items() if name not in self._fetched}
        for name in self._load(kept, "this machine"):
            self._kept.drop(name)
        for name in self._load(self._fetched, "the bucket"):
            del self._fetched[name]
        return bool(kept or self._fetched)

    def _load(self, found: Mapping[str, Path], source: str) -> list[str]:
        """Load operators; returns the names of those that can't be loaded."""
        loaded, broken = _loaded_operators() if found else {}, []
        for name, path in found.items():
            try:
                loaded[name] = load(name, path)
            except ImportError as error:
                broken.append(name)
                logger.warning("the operator %s from %s can't be loaded: %s", name, source, error)
            else:
                logger.info("the operator %s comes from %s", name, source)
        return broken

    def publish(self) -> None:
        """Keep what DeepSpeed has compiled or found here, on this machine and, if missing, in the bucket."""
        if "deepspeed" not in sys.modules:
            return
        made = {name: Path(module.__file__ or "") for name, module in _loaded_operators().items()}
        made = {name: path for name, path in made.items() if NAME.fullmatch(name) and path.suffix == ".so"}
        self._kept.keep({name: path for name, path in made.items() if name not in self._kept.find()})
        if self._files is not None and made and not made.keys() <= self._fetched.keys():
            threading.Thread(target=self._publish, args=(self._files, made), name="operators", daemon=True).start()

    def _publish(self, files: SignedFiles, made: Mapping[str, Path]) -> None:
        try:
            files.publish({f"{name}.so": path for name, path in made.items()})
        except (NotusError, OSError) as error:
            logger.warning("can't put the compiled operators into the bucket: %s", error)

    def _prefetch(self, secret: bytes) -> None:
        try:
            self._files = SignedFiles(self._store, f"{FOLDER}/{machine_key()}", secret)
            self._fetched = {path.stem: path for path in self._files.fetch(self._folder).values()}
        except (NotusError, OSError) as error:
            logger.warning("the compiled operators in the bucket can't be used: %s", error)


def load(name: str, path: Path) -> ModuleType:
    """The operator's module, as torch loads what it has compiled. Raises `ImportError`."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _loaded_operators() -> dict[str, ModuleType]:
    """The operators that DeepSpeed 0.19.8 checks before it compiles."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    found: dict[str, ModuleType] = OpBuilder._loaded_ops
    return found


def _compiler() -> str:
    try:
        done = subprocess.run(["c++", "--version"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return "no compiler"
    return done.stdout.partition("\n")[0]


def _instructions() -> set[str]:
    """The instruction sets of this processor: `-march=native` uses all of them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {line for line in lines if line.startswith(("model name", "flags", "Features"))}


def _gpus() -> set[str]:
    """The models of this machine's GPUs, read without torch, which isn't imported yet."""
    found = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return {line for path in found for line in path.read_text().splitlines() if line.startswith("Model")}
