"""Loading from the Hub: whose fault is an error, the user's or the network's?

The libraries raise OSError for nearly everything. A wrong name is the user's error and is never retried; a Hub that
does not answer is a failure that the next attempt may not see.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def blaming(what: str, name: str, key: str) -> Iterator[None]:
    """Turn errors of loading `what` (called `name`, from the recipe's `key`) into a UserError or a TrainingFailed."""
    try:
        yield
    except NotusError:
        raise
    except (OSError, ValueError) as error:
        raise blame(error, what, name, key) from error


def blame(error: Exception, what: str, name: str, key: str) -> NotusError:
    """The error to show for `error`."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    message = f"can't load {what} {name!r}: {first}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        return TrainingFailed(message, "the local disk or the network of this machine")
    if isinstance(error, ConnectionError) or _is_network(str(error)):
        return TrainingFailed(message, "the Hub did not answer; the next attempt tries again")
    kind = DataError if key.startswith("dataset") else UserError
    return kind(
        message, f"check {key} in the recipe, and HF_TOKEN if it is private; local data ends in .jsonl or .parquet"
    )


def _is_network(text: str) -> bool:
    lowered = text.lower()
    return any(word in lowered for word in _NETWORK_WORDS)
