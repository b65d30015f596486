"""DeepSpeed's compiled operators on this machine, without locks that outlive their process.

torch compiles in one folder for all processes of a user, with a file as the lock (torch.utils.file_baton). A process
that is killed meanwhile leaves that file, and every later process of any run waits forever for its removal. So each
attempt compiles in its own folder, for which no other process waits, and the result is kept under a name that appears
only once it is complete:

    KEPT/notus-KEY/NAME.so

Other libraries that write below a user's home while a run starts (the Hub's and datasets' downloads, inductor) lock
with `flock`, which the kernel releases, and triton renames; see tests/integration/test_stale_locks.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from trainer.build_cache.signed_artifacts import NAME

logger = logging.getLogger(__name__)

BUILD_FOLDER = "TORCH_EXTENSIONS_DIR"
"""Environment variable: where torch compiles."""


def kept_root(environment: Mapping[str, str]) -> Path:
    """Where finished operators are kept: the user's own folder for them, or a cache folder."""
    chosen = environment.get(BUILD_FOLDER)
    return Path(chosen) if chosen else platformdirs.user_cache_path("notus-launch", appauthor=False) / "operators"


def compile_apart(folder: Path) -> None:
    """Make torch compile in `folder`, which is the attempt's, shared by its ranks, and removed with it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[BUILD_FOLDER] = str(folder)


class KeptOperators:
    """The finished operators of one kind of machine and of one set of versions."""

    def __init__(self, root: Path, key: str) -> None:
        self._folder = root / f"notus-{key}"

    def find(self) -> dict[str, Path]:
        """The kept operators by name."""
        return {path.stem: path for path in self._folder.glob("*.so") if NAME.fullmatch(path.stem)}

    def keep(self, made: Mapping[str, Path]) -> None:
        """Keep what was compiled here. If the folder isn't writable, the next start takes a minute longer."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, path in made.items():
                self._keep(name, path)
        except OSError as error:
            logger.warning("the compiled operators can't be kept for the next start: %s", error)

    def _keep(self, name: str, path: Path) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{name}-")
        os.close(descriptor)
        try:
            shutil.copyfile(path, temporary)
            Path(temporary).chmod(0o755)
            Path(temporary).replace(self._folder / f"{name}.so")
        finally:
            Path(temporary).unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Remove an operator that can't be loaded, so that it is compiled again."""
        with contextlib.suppress(OSError):
            (self._folder / f"{name}.so").unlink()
