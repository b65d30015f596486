"""What a number may be, for recipes and for both command lines. Light: `--help` imports it."""

from __future__ import annotations

MAX_HOURS = 24.0 * 366
"""Of work, and until a deadline."""
MAX_PROCESSES = 1024
MAX_SEED = 2**32 - 1
"""NumPy takes no other."""
