"""Classifies errors of loading from the Hub: the user's or the network's?

The libraries raise OSError for nearly everything. A wrong name is the user's error and is never retried; a Hub that
does not respond is a failure that the next attempt may not see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pickle import UnpicklingError

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from checkpoints.errors import NotusError, UserError
from trainer.errors import DataError, TrainingFailed

_NETWORK_WORDS = (
    "connect",
    "timed out",
    "timeout",
    "temporary failure",
    "max retries",
    "too many requests",
    "server error",
)
_OF_INPUT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    ImportError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What a library raises for its input, which is the same on every machine. A RuntimeError may be a broken GPU's."""
MOST_LINES, MOST_CHARACTERS = 4, 500
"""How much of a library's error is shown: the second line may list the valid names."""


@contextlib.contextmanager
def translated_errors(what: str, name: str, key: str) -> Iterator[None]:
    """Turn errors of loading `what` (called `name`, from the recipe's `key`) into a UserError or a TrainingFailed."""
    try:
        yield
    except NotusError:
        raise
    except Exception as error:
        raise translate_error(error, what, name, key) from error


def translate_error(error: Exception, what: str, name: str, key: str) -> NotusError:
    """The error to show for `error`. A library's message may be empty, or a number, so the error's name is added."""
    text = " ".join(line.strip() for line in str(error).splitlines()[:MOST_LINES] if line.strip())[:MOST_CHARACTERS]
    if not isinstance(error, OSError) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    message = f"can't load {what} {name!r}: {text}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        return TrainingFailed(message, "check the local disk and the network of this machine")
    if isinstance(error, ConnectionError) or _is_network(str(error)):
        return TrainingFailed(message, "the Hub did not respond; the next attempt tries again")
    if not isinstance(error, (OSError, *_OF_INPUT)) and type(error) is not Exception:  # which tokenizers raises
        return TrainingFailed(message, "check the memory and the GPUs of this machine; the log has the traceback")
    private = f"check {key} in the recipe, and HF_TOKEN if it is private"
    if not key.startswith("dataset"):
        return UserError(message, private)
    return DataError(
        message, f"{private}; dataset.config selects a configuration; local data ends in .jsonl or .parquet"
    )


def _is_network(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _NETWORK_WORDS)
