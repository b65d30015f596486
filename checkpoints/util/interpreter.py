"""Starts our Python processes so that they run our code, whatever is in the user's current folder.

`python -m` and `python -c` put the current folder first on `sys.path`, so a user's `trainer.py`, `checkpoints/` or
`json.py` there would run instead of ours. `-P` leaves it out, for the process and for what `multiprocessing` starts
from it. PYTHONSAFEPATH is not set: it would also affect the user's own programs, which may need their folder.

Despite `-P`, an empty or relative entry of PYTHONPATH (`PYTHONPATH=:/x`, which `PYTHONPATH=$PYTHONPATH:/x` produces)
puts the current folder back. `environment` removes those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

SAFE = (sys.executable, "-P")
"""The current interpreter, without the current folder on its path."""
PATH = "PYTHONPATH"
_ROOT = Path(__file__).resolve().parents[2]
"""Where this code was loaded from."""


def module(name: str) -> list[str]:
    """The command line that runs a module; the module's arguments follow."""
    return [*SAFE, "-m", name]


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for such a process: `base`, else this process's, with only the absolute entries of PYTHONPATH.

    A relative entry is kept, made absolute, only if our own code is there: a checkout that isn't installed.
    """
    found = dict(os.environ if base is None else base)
    entries = [_absolute(entry) for entry in found.pop(PATH, "").split(os.pathsep)]
    if kept := [entry for entry in entries if entry]:
        found[PATH] = os.pathsep.join(kept)
    return found


def _absolute(entry: str) -> str:
    """The entry as an absolute path; '' if it is left out."""
    if not entry or Path(entry).is_absolute():
        return entry
    return str(_ROOT) if Path(entry).resolve() == _ROOT else ""
