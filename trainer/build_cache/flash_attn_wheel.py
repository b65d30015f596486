"""flash-attn on a new machine: its wheel from the run's folder of the bucket, else compiled here and kept there.

`python -m trainer.flash RECIPE [CONSTRAINTS]`, in the set-up of a VM. flash-attn doesn't have a wheel for every torch;
compiling one takes 20 minutes to hours on a paid machine, again after each preemption. So the first machine puts its
wheel into the bucket:

    cache/wheels/KEY/flash_attn-...whl

Compiling may take `COMPILE_S`; if that isn't enough, a marker beside the wheel keeps later machines from paying for
the same try. The key covers everything that the wheel depends on. This is code: see `signed_artifacts` for which files
are trusted. If anything fails here, the trainer uses torch's own attention and logs it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions, requires, version
from pathlib import Path

from checkpoints.errors import NotusError
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from checkpoints.util.interpreter import environment, module
from trainer.build_cache.signed_artifacts import SignedFiles, signing_key
from trainer.config.recipe import load_recipe
from trainer.runtime.process_tree import kill_descendants

FOLDER = "cache/wheels"
PACKAGE = "flash-attn"

COMPILE_S = 1200.0
"""The nodes that train a 7B model have a hundred cores and compile in a few minutes."""
INSTALL_S = 300.0
TOO_SLOW = "too-slow"

Pip = Callable[[Sequence[str]], None]
"""`pip ARGUMENTS...`; raises `CalledProcessError`, or `TimeoutExpired` if it takes too long."""


def main() -> int:
    """Entry point; returns 0 even if flash-attn is not available: training then runs without it."""
    try:
        if load_recipe(sys.argv[1]).hardware.gpus is not None:
            install(run_pip, sys.argv[2] if sys.argv[2:] else None, os.environ)
    except (subprocess.SubprocessError, NotusError, OSError) as error:
        log(f"flash-attn is not available ({error}), using torch's own attention")
    return 0


def install(pip: Pip, constraints: str | None, environment: Mapping[str, str]) -> None:
    """Install flash-attn. Raises `SubprocessError` if it can't be compiled or installed; bucket errors are ignored."""
    files = cache_of(environment, constraints)
    limits = ["-c", constraints] if constraints else []
    with tempfile.TemporaryDirectory(prefix="notus-wheel-") as folder:
        if files is not None and (wheel := fetched(files, Path(folder) / "fetched")):
            try:
                pip(["install", *limits, str(wheel)])
            except subprocess.SubprocessError:
                log("the flash-attn in the bucket can't be installed: compiling it")
            else:
                log("flash-attn comes from the bucket")
                return
        if files is not None and too_slow(files):
            log("compiling flash-attn took too long on an earlier machine: using torch's own attention")
            return
        built = Path(folder) / "built"
        log(f"no flash-attn in the bucket: looking for a wheel, or compiling it (at most {COMPILE_S / 60:.0f} minutes)")
        try:
            pip(["wheel", *limits, "--no-build-isolation", "--no-deps", "-w", str(built), requirement()])
        except subprocess.TimeoutExpired:
            if files is not None:
                remember_too_slow(files)
            raise
        wheel = next(built.glob("*.whl"))
        pip(["install", *limits, str(wheel)])
        if files is not None:
            keep(files, wheel)


def cache_of(environment: Mapping[str, str], constraints: str | None) -> SignedFiles | None:
    """The run's cache of wheels; None if nothing is kept."""
    secret, bucket, run = signing_key(environment), environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if secret is None or not bucket or not run:
        return None
    try:
        store: Store = open_run(bucket, run, environment)
    except Exception as error:  # a bucket's client may raise anything
        log(f"can't open the bucket: {error}")
        return None
    return SignedFiles(store, f"{FOLDER}/{wheel_key(environment, constraints)}", secret)


def fetched(files: SignedFiles, folder: Path) -> Path | None:
    """The wheel in the bucket, if there is one that can be read."""
    try:
        return next((path for path in files.fetch(folder).values() if path.suffix == ".whl"), None)
    except (NotusError, OSError) as error:
        log(f"the flash-attn in the bucket can't be used: {error}")
        return None


def too_slow(files: SignedFiles) -> bool:
    """Has an earlier machine of the run run out of time compiling?"""
    try:
        return files.marked(TOO_SLOW)
    except NotusError as error:
        log(f"can't read from the bucket whether flash-attn compiles: {error}")
        return False


def remember_too_slow(files: SignedFiles) -> None:
    """Leave a marker for the next machine."""
    try:
        files.mark(TOO_SLOW)
    except NotusError as error:
        log(f"the next machine will try again: {error}")


def keep(files: SignedFiles, wheel: Path) -> None:
    """Put the wheel into the bucket for the next machine."""
    try:
        files.publish({wheel.name: wheel})
    except (NotusError, OSError) as error:
        log(f"can't put flash-attn into the bucket: {error}")


def wheel_key(environment: Mapping[str, str], constraints: str | None) -> str:
    """The key of what a compiler makes here. A wheel is for all GPUs, or those in FLASH_ATTN_CUDA_ARCHS."""
    pinned = Path(constraints).read_text().splitlines() if constraints else []
    cuda = {f"{found.name} {found.version}" for found in distributions() if "cuda-runtime" in (found.name or "")}
    parts = (
        requirement(),
        *sorted(line for line in pinned if line.startswith(PACKAGE)),
        f"torch {version('torch')} python {sys.version}",
        f"{platform.machine()} {' '.join(platform.libc_ver())}",
        *sorted(cuda),
        environment.get("FLASH_ATTN_CUDA_ARCHS", ""),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def requirement() -> str:
    """flash-attn as required by this project's `gpu` extra."""
    requirements = (line.partition(";")[0].strip() for line in requires("notus-launch") or [])
    return next(line for line in requirements if line.startswith(PACKAGE))


def run_pip(arguments: Sequence[str]) -> None:
    """Run this environment's pip and show its output. On a timeout its compilers are killed too."""
    command = [*module("pip"), *arguments]
    with subprocess.Popen(command, env=environment()) as process:
        try:
            code = process.wait(COMPILE_S if arguments[0] == "wheel" else INSTALL_S)
        except BaseException:
            kill_descendants(process.pid)
            process.kill()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def log(text: str) -> None:
    """Write to the log of the set-up and flush: a compiler may run for an hour after it."""
    sys.stdout.write(f"notus: {text}\n")
    sys.stdout.flush()
