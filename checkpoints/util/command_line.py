"""What the four command lines share.

Streams that don't break, one way to show an error, tracebacks on demand, and rejection of blank values.
"""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from checkpoints.errors import NotusError, UserError
from checkpoints.util.streams import reliable_streams

if TYPE_CHECKING:
    from rich.console import Console

FIXABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENOSPC, errno.EDQUOT),
    }
)
"""Problems with a user's file. The last resort, for files that no earlier check has reported better."""


def console(*, stderr: bool = False) -> Console:
    """Return the console that shows all output.

    Names and messages are shown verbatim: rich would take `layers[0]` or `:smile:` for markup, and fail at `[/b]`.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False)


def run_app(app: Callable[..., Any], name: str) -> None:
    """Run a typer app; print a `NotusError` as one message with its hint and exit with its code.

    `--debug` anywhere on the command line prints the traceback as well.
    """
    debug = "--debug" in sys.argv
    try:
        with reliable_streams():
            _run(app, name, debug=debug)
    except NotusError as error:  # only from the streams: all others were shown while stderr was guarded
        show_error(error, name)
        raise SystemExit(error.exit_code) from None


def _run(app: Callable[..., Any], name: str, *, debug: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, format=f"{name}: %(message)s", stream=sys.stderr
    )
    try:
        command = refuse_blanks(typer.main.get_command(app)) if isinstance(app, typer.Typer) else app
        command(prog_name=name)
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


def refuse_blanks(command: Any) -> Any:
    """Make the command and every subcommand reject blank text for each option and argument.

    Otherwise, with the variables unset, `--bucket "$B"` would mean the default bucket, `--name "$N"` a new run, and a
    path the current folder. An empty environment variable counts as unset, and '' is valid if it is the default.
    """
    for parameter in command.params:
        parameter.process_value = _refusing(parameter, parameter.process_value)
    for subcommand in getattr(command, "commands", {}).values():
        refuse_blanks(subcommand)
    return command


def _refusing(parameter: Any, convert: Callable[..., Any]) -> Callable[..., Any]:
    """Check the text before it is converted: as a path, '' would already be the current folder."""

    def check(context: Any, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and not text.strip() and text != parameter.default:
                raise UserError(*_blank(context, parameter, text))
        return convert(context, value)

    return check


def _blank(context: Any, parameter: Any, text: str) -> tuple[str, str]:
    """The message and hint for a blank value."""
    source = context.get_parameter_source(parameter.name)
    option = max(parameter.opts, key=len)
    if source is not None and source.name == "ENVIRONMENT":
        return f"{parameter.envvar} is set to {text!r}, which is blank", f"give it a value, or unset {parameter.envvar}"
    if not option.startswith("-"):
        return f"the argument {option.upper()} is {text!r}, which is blank", "give it a value: is a variable unset?"
    return f"{option} {text!r} is blank", f"give {option} a value, or leave it out: is a variable unset?"


def _shown(path: object) -> str:
    return path.decode(errors="replace") if isinstance(path, bytes) else str(path)


def show_error(error: NotusError, name: str) -> None:
    """Print a message and its hint to stderr. An error without a message has only its exit code."""
    if not error.message:
        return
    sys.stderr.write(f"{name}: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  {error.hint}\n")
