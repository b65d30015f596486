"""Locations of the user's own files."""

from __future__ import annotations

import os
from pathlib import Path

from checkpoints.util.environment import user_path


def home() -> Path:
    """Our folder in the user's home: the default bucket and scratch space. NOTUS_HOME moves it."""
    return user_path(os.environ.get("NOTUS_HOME") or "~/.notus").absolute()


def experience_path() -> Path:
    """Spot market statistics of the user's runs (planning/user_history.py)."""
    return home() / "experience.json"


def default_folder() -> Path:
    """The folder of the embedded default bucket. It may not exist yet."""
    return home() / "bucket"


def default_bucket() -> str:
    """URL of the embedded default bucket, which `writable(default_folder())` creates."""
    return f"file://{default_folder()}"
