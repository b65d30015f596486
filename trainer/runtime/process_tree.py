"""Makes sure that no child process outlives this one: orphans are adopted and killed."""

from __future__ import annotations

import contextlib
import ctypes

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies.

    torchrun starts each rank in its own session, so a process group can't catch them, but the subreaper can.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signum: int) -> None:
    """Have the kernel send this process `signum` when its parent dies, however it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)


def is_alive(pid: int) -> bool:
    """Is the process still running?

    An exited process that is never reaped (a container's first process often reaps nothing) keeps its pid until the
    container ends.
    """
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def any_descendant(word: str) -> bool:
    """Is there a living descendant with `word` on its command line?"""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if word in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def kill_descendants(pid: int | None = None, *, grace_s: float = 10.0) -> int:
    """SIGKILL every descendant of `pid` (default: this process) and reap ours; returns how many there were."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=grace_s)
    return len(found)
