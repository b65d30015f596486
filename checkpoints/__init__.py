"""Durable, verified, fenced training state in object storage.

The public names are those in `__all__`; the modules below are internal and may change. Importing this package, and
listing, verifying and reading checkpoints, need no torch: tensors are bytes with a dtype name until
`checkpoints.snapshot.state_tree` runs in a process that has torch loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints.checkpointer import Checkpointer
    from checkpoints.errors import CorruptCheckpoint, Fenced, NotusError, RunHeld, StoreError, UserError
    from checkpoints.storage.backend import open_store
    from checkpoints.storage.base import Store

__all__ = [
    "Checkpointer",
    "CorruptCheckpoint",
    "Fenced",
    "NotusError",
    "RunHeld",
    "Store",
    "StoreError",
    "UserError",
    "open_store",
]

_HOME = {
    "Checkpointer": "checkpoints.checkpointer",
    "Store": "checkpoints.storage.base",
    "open_store": "checkpoints.storage.backend",
}
"""Where a public name is defined, if not among the errors."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a command line's `--help` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "checkpoints.errors")), name)
