"""SkyPilot's settings files: their locations and values. Errors name the file and the key.

The files are the user's. A section may be missing, empty (everything below it commented out) or of the wrong type.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import (
    DoubleQuotedScalarString,
    FoldedScalarString,
    LiteralScalarString,
    SingleQuotedScalarString,
)

from checkpoints.util.environment import user_path
from launcher.errors import RequestError

REPAIR = "repair it, or move it away"
BOM = "\ufeff"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_BOOLEANS = {way(word): word in _TRUE for word in (*_TRUE, *_FALSE) for way in (str.lower, str.upper, str.capitalize)}
"""Unquoted words that SkyPilot's reader, PyYAML, reads as booleans; ours reads some of them as strings."""


_QUOTED = (SingleQuotedScalarString, DoubleQuotedScalarString, LiteralScalarString, FoldedScalarString)


class Text(NamedTuple):
    """The content of a settings file, and details to preserve when writing it."""

    text: str
    has_bom: bool
    newline: str


def plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """The file that lists SkyPilot's plugins."""
    return _file(home / ".sky/plugins.yaml", environment.get("SKYPILOT_SERVER_PLUGINS_CONFIG"))


def config_file(home: Path, environment: Mapping[str, str]) -> Path:
    """The file with SkyPilot's settings."""
    return _file(home / ".sky/config.yaml", environment.get("SKYPILOT_GLOBAL_CONFIG"))


def remote_plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """The file that lists the plugins to load on a controller's VM."""
    return _file(home / ".sky/remote_plugins.yaml", environment.get("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG"))


def _file(default: Path, given: str | None) -> Path:
    return user_path(given) if given else default


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} for a missing or empty one. Raises `RequestError` for one that can't be read."""
    return load(path, read_text(path).text)


def read_text(path: Path) -> Text:
    """The text of a file, '' for a missing one. Raises `RequestError`."""
    try:
        if path.exists() and not path.is_file() and not path.samefile(os.devnull):
            # Reading a device may never end, and a pipe may block; /dev/null is commonly used for "no settings".
            raise RequestError(f"{path} is not a regular file", REPAIR)
        data = path.read_bytes()
    except FileNotFoundError:
        return Text("", False, "\n")
    except OSError as error:
        raise RequestError(f"{path} can't be read: {error.strerror or error}", REPAIR) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{path}:{line} is not UTF-8 text", "re-encode the file as UTF-8, or move it away"
        ) from error
    newline = "\r\n" if "\r\n" in text else "\n"
    return Text(text.removeprefix(BOM).replace("\r\n", "\n"), text.startswith(BOM), newline)


def load(path: Path, text: str) -> dict[str, Any]:
    """Parse the text of `path` as a mapping, with comments; {} for none. Raises `RequestError`."""
    try:
        data = round_trip().load(io.StringIO(text))
    except Exception as error:  # ruamel raises ValueError, AttributeError and others besides its own
        raise RequestError(f"{path} can't be read: {_first_line(error)}", REPAIR) from error
    if data is not None and not isinstance(data, dict):
        raise RequestError(f"{path} is not a mapping", REPAIR)
    return {} if data is None else data


def round_trip() -> YAML:
    """A parser and writer that keeps comments, order, quotes and long lines."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000
    return yaml


def section(path: Path, config: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping below `keys`; {} if it is missing or empty. Raises `RequestError` for anything else there."""
    value: Any = config
    for count, key in enumerate(keys, start=1):
        value = value.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise RequestError(
                f"{path}: {'.'.join(keys[:count])} must be a mapping, but is {_kind(value)}",
                f"put its settings below `{key}:`, or delete it",
            )
    return value  # type: ignore[no-any-return]


def items(path: Path, config: Mapping[str, Any], key: str) -> list[Any]:
    """The list below `key`; [] if it is missing or empty. Raises `RequestError` for anything else there."""
    value = config.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(f"{path}: {key} must be a list, but is {_kind(value)}", "write it as a list, or delete it")
    return value


def text_of(path: Path, config: Mapping[str, Any], key: str) -> str:
    """The string below `key`; '' if it is missing or empty. Raises `RequestError` for anything else there."""
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(
            f"{path}: {key} must be a string, but is {_kind(value)}", "write it as a string, or delete it"
        )
    return str(value or "")


def flag_of(path: Path, config: Mapping[str, Any], key: str) -> bool | None:
    """The boolean below `key`, as SkyPilot reads it; None if it is missing or empty. Raises `RequestError`."""
    value = config.get(key)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not isinstance(value, _QUOTED) and value in _BOOLEANS:
        return _BOOLEANS[value]
    raise RequestError(
        f"{path}: {key} must be true or false, but is {_kind(value)}",
        "write true or false without quotes: SkyPilot rejects strings",
    )


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"{str(value)[:40]!r}" if isinstance(value, str) else str(value)[:40]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
