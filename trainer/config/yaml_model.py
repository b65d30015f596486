"""Loads YAML into frozen pydantic models, with errors that point at the line."""

from __future__ import annotations

import difflib
import io
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from trainer.errors import RecipeError


class Settings(BaseModel):
    """A section of a settings file: typed, frozen, finite, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Settings)


def load_settings(model: type[M], path: Path) -> M:
    """Parse and validate a YAML file.

    Raises:
        RecipeError: the file can't be read, isn't YAML, or doesn't match the model; one line per problem, with file,
            line, key and the nearest valid key.
    """
    try:
        document = YAML(typ="rt").load(io.StringIO(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    if not isinstance(document, CommentedMap):
        raise RecipeError(f"{path}:1: expected `key: value` lines at the top level")
    try:
        return model.model_validate(plain(document))
    except ValidationError as error:
        found = [_explain(detail, model, document, path) for detail in error.errors(include_url=False)]
        lines = [line for _, line in sorted(found)]
        raise RecipeError("\n".join(lines), f"the keys and their types: docs/reference/{_page(model)}.md") from error


def plain(value: Any) -> Any:
    """Convert ruamel's round-trip containers and scalars to plain Python."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _page(model: type[Settings]) -> str:
    return model.__name__.lower()


def _explain(detail: ErrorDetails, model: type[Settings], document: CommentedMap, path: Path) -> tuple[int, str]:
    """The line number of a problem, and the full message."""
    location = [part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in location)
    line = _line(document, location)
    where = f"{path}:{line}"
    if detail["type"] == "extra_forbidden":
        valid = _valid_keys(model, location[:-1])
        return line, f"{where}: unknown key {key!r}; {_nearest(str(location[-1]), valid)}"
    if detail["type"] == "missing":
        return line, f"{where}: the key {key!r} is missing"
    given = detail.get("input")
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    message = detail["msg"].removeprefix("Value error, ")
    return line, f"{where}: {key}: {message}{shown}" if key else f"{where}: {message}"


def _line(document: Any, location: list[Any]) -> int:
    """The 1-based line of the deepest part of `location` that is in the document."""
    line = 1
    for part in location:
        if isinstance(document, CommentedMap) and part in document:
            line = document.lc.key(part)[0] + 1
        elif isinstance(document, CommentedSeq) and isinstance(part, int) and part < len(document):
            line = document.lc.item(part)[0] + 1
        else:
            break
        document = document[part]
    return line


def _valid_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        nested = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _nearest(key: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
