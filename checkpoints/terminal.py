"""What the four command lines share: streams that don't break, one way to show an error, tracebacks on demand."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from checkpoints.errors import NotusError, UserError
from checkpoints.streams import reliable_streams

FIXABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EDQUOT),
    }
)
"""A file of the user's that is not as it has to be: the last net, where no check before has a better sentence."""


def run_app(app: Callable[..., Any], name: str) -> None:
    """Run a typer app; print a `NotusError` as one message with its hint and leave with its exit code.

    `--debug` anywhere on the command line prints the traceback as well.
    """
    debug = "--debug" in sys.argv
    try:
        with reliable_streams():
            _run(app, name, debug=debug)
    except NotusError as error:  # only of the streams: all others have been shown while stderr was guarded
        show_error(error, name)
        raise SystemExit(error.exit_code) from None


def _run(app: Callable[..., Any], name: str, *, debug: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, format=f"{name}: %(message)s", stream=sys.stderr
    )
    try:
        app(prog_name=name)
    except NotusError as error:
        if debug:
            traceback.print_exc()
        show_error(error, name)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if debug or error.errno not in FIXABLE or error.filename is None:
            raise
        refusal = UserError(f"{_shown(error.filename)}: {error.strerror}", "fix that and try again; --debug shows more")
        show_error(refusal, name)
        raise SystemExit(refusal.exit_code) from None


def _shown(path: object) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)


def show_error(error: NotusError, name: str) -> None:
    """Print a message and its hint to stderr. An error without a message is shown by its exit code alone."""
    if not error.message:
        return
    sys.stderr.write(f"{name}: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")
