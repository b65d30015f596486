"""flash-attn on a new machine: its wheel from the run's folder of the bucket, else compiled here and kept there.

`python -m trainer.flash RECIPE [CONSTRAINTS]`, in the set-up of a VM. There is no wheel of
flash-attn for each torch; compiling one takes 20 minutes to hours of a machine that is paid, after each preemption
again. So the first machine puts what it has compiled into the bucket:

    cache/wheels/KEY/flash_attn-...whl

A compiler gets `COMPILE_S`; where that isn't enough, a note beside the wheel keeps the next machines from paying for
the same try. The key names all that the wheel depends on. It is code: see `signed_files` for whose is taken. Whatever
fails here, the trainer then takes torch's own attention and says so.
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
"""The nodes that train a 7B model have a hundred cores and compile in some minutes."""
INSTALL_S = 300.0
TOO_SLOW = "too-slow"

Pip = Callable[[Sequence[str]], None]
"""`pip ARGUMENTS...`; raises `CalledProcessError`, and `TimeoutExpired` where it takes too long."""


def main() -> int:
    """0 also where there is no flash-attn in the end: the training goes on without."""
    try:
        if load_recipe(sys.argv[1]).hardware.gpus is not None:
            install(run_pip, sys.argv[2] if sys.argv[2:] else None, os.environ)
    except (subprocess.SubprocessError, NotusError, OSError) as error:
        say(f"flash-attn is not available ({error}), using torch's own attention")
    return 0


def install(pip: Pip, constraints: str | None, environment: Mapping[str, str]) -> None:
    """Raises `SubprocessError` where it can't be compiled or installed; a bucket that fails is none."""
    files = cache_of(environment, constraints)
    limits = ["-c", constraints] if constraints else []
    with tempfile.TemporaryDirectory(prefix="notus-wheel-") as folder:
        if files is not None and (wheel := fetched(files, Path(folder) / "fetched")):
            try:
                pip(["install", *limits, str(wheel)])
            except subprocess.SubprocessError:
                say("the flash-attn of the bucket can't be installed: compiling it")
            else:
                say("flash-attn comes from the bucket")
                return
        if files is not None and too_slow(files):
            say("compiling flash-attn has taken an earlier machine too long: using torch's own attention")
            return
        built = Path(folder) / "built"
        say(f"no flash-attn in the bucket: looking for a wheel, or compiling it (at most {COMPILE_S / 60:.0f} minutes)")
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
    """Where the run's wheel is; None where nothing is kept."""
    secret, bucket, run = signing_key(environment), environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if secret is None or not bucket or not run:
        return None
    try:
        store: Store = open_run(bucket, run, environment)
    except Exception as error:  # a bucket's client raises what it likes
        say(f"the bucket doesn't open: {error}")
        return None
    return SignedFiles(store, f"{FOLDER}/{wheel_key(environment, constraints)}", secret)


def fetched(files: SignedFiles, folder: Path) -> Path | None:
    """The wheel of the bucket, if it has one and tells it."""
    try:
        return next((path for path in files.fetch(folder).values() if path.suffix == ".whl"), None)
    except (NotusError, OSError) as error:
        say(f"the flash-attn of the bucket can't be used: {error}")
        return None


def too_slow(files: SignedFiles) -> bool:
    """Has an earlier machine of the run tried for as long as it may?"""
    try:
        return files.marked(TOO_SLOW)
    except NotusError as error:
        say(f"the bucket doesn't tell whether flash-attn compiles: {error}")
        return False


def remember_too_slow(files: SignedFiles) -> None:
    """For the next machine."""
    try:
        files.mark(TOO_SLOW)
    except NotusError as error:
        say(f"the next machine will try again: {error}")


def keep(files: SignedFiles, wheel: Path) -> None:
    """For the next machine."""
    try:
        files.publish({wheel.name: wheel})
    except (NotusError, OSError) as error:
        say(f"flash-attn is not in the bucket: {error}")


def wheel_key(environment: Mapping[str, str], constraints: str | None) -> str:
    """The key of what a compiler makes here. A wheel is for all kinds of GPU, or those of FLASH_ATTN_CUDA_ARCHS."""
    pinned = Path(constraints).read_text().splitlines() if constraints else []
    cuda = {f"{found.name} {found.version}" for found in distributions() if "cuda-runtime" in (found.name or "")}
    told = (
        requirement(),
        *sorted(line for line in pinned if line.startswith(PACKAGE)),
        f"torch {version('torch')} python {sys.version}",
        f"{platform.machine()} {' '.join(platform.libc_ver())}",
        *sorted(cuda),
        environment.get("FLASH_ATTN_CUDA_ARCHS", ""),
    )
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def requirement() -> str:
    """As this project's `gpu` extra asks for it."""
    asked = (line.partition(";")[0].strip() for line in requires("notus-launch") or [])
    return next(line for line in asked if line.startswith(PACKAGE))


def run_pip(arguments: Sequence[str]) -> None:
    """The pip of this environment, its output shown. Out of time, its compilers end with it."""
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


def say(text: str) -> None:
    """Into the log of the set-up, at once: a compiler may run for an hour after it."""
    sys.stdout.write(f"notus: {text}\n")
    sys.stdout.flush()
