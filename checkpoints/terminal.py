"""What the three command lines share: one way to show an error, one place for tracebacks."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

from checkpoints.errors import NotusError


def run_app(app: Callable[..., Any], name: str) -> None:
    """Run a typer app; print a `NotusError` as one message with its hint and leave with its exit code.

    `--debug` anywhere on the command line prints the traceback as well.
    """
    debug = "--debug" in sys.argv
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


def show_error(error: NotusError, name: str) -> None:
    """Print a message and its hint to stderr."""
    sys.stderr.write(f"{name}: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")
