"""Where this user's own files lie."""

from __future__ import annotations

import os
from pathlib import Path

from checkpoints.util.environment import user_path


def home() -> Path:
    """Our folder in the user's home: the default bucket and scratch space. NOTUS_HOME moves it."""
    return user_path(os.environ.get("NOTUS_HOME") or "~/.notus").absolute()


def experience_path() -> Path:
    """What the user's runs have met of spot markets (experience.py)."""
    return home() / "experience.json"


def default_folder() -> Path:
    """The folder of the embedded default bucket. It may not be there yet."""
    return home() / "bucket"


def default_bucket() -> str:
    """The embedded default bucket: `writable(default_folder())` makes it."""
    return f"file://{default_folder()}"
