"""Numbers from environment variables, within bounds: what a task file says by hand is checked like an option."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from checkpoints.errors import UserError

Default = TypeVar("Default", float, None)


def number_of(
    environment: Mapping[str, str], name: str, default: Default, *, at_least: float, at_most: float
) -> float | Default:
    """The number in a variable; `default` if it is missing or empty. Raises `UserError` naming the bounds."""
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not at_least <= value <= at_most:  # also false for nan
        raise UserError(
            f"{name} is {text[:40]!r}, and has to be a number from {at_least:g} to {at_most:g}",
            f"correct it in the task's envs, or leave {name} empty",
        )
    return value
