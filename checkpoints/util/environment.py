"""Input from the environment, validated like an option: numbers in variables, and the home folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from checkpoints.errors import UserError

Default = TypeVar("Default", float, None)


def number_of(
    environment: Mapping[str, str], name: str, default: Default, *, at_least: float, at_most: float
) -> float | Default:
    """The number in a variable; `default` if it is missing or empty. Raises `UserError` with the bounds."""
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


def user_path(text: str) -> Path:
    """A path with `~` and `~user` resolved. Raises `UserError` if that home folder is unknown."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"the home folder in {text!r} is not known", "write the whole path, or set HOME") from error


def user_home() -> Path:
    """The user's home folder. Raises `UserError` for a user without one."""
    return user_path("~")
