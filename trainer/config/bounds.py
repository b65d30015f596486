"""Limits of numbers in recipes and on both command lines. Cheap to import, for `--help`."""

from __future__ import annotations

MAX_HOURS = 24.0 * 366
"""Maximum hours of work, and until a deadline."""
MAX_PROCESSES = 1024
MAX_SEED = 2**32 - 1
"""NumPy's limit."""
