"""Starting Python processes of ours so that they run our code, whatever lies in the folder that the user is in.

`python -m` and `python -c` put the current folder first on `sys.path`: a user's `trainer.py`, `checkpoints/` or
`json.py` there would be run instead of ours. `-P` leaves it out, for the process and for what `multiprocessing` starts
from it. PYTHONSAFEPATH is not set: it would also reach programs of the user's, which may want their own folder.
"""

from __future__ import annotations

import sys

SAFE = (sys.executable, "-P")
"""The interpreter that runs this, without the current folder on its path."""


def module(name: str) -> list[str]:
    """The command line that runs a module; the module's arguments follow."""
    return [*SAFE, "-m", name]
