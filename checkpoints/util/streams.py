"""Standard streams that survive any encoding, a full disk, a reader that has gone, and a closed descriptor.

stdout is the result: if it can't be written, the command ends with `OutputLost`. stderr is progress: a run of hours
must not die because its terminal has gone, so what can't be written there is dropped.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

from checkpoints.errors import NotusError

REPLACE = "notus.replace"
"""Our handler for characters that a stream's encoding lacks."""
_PLAIN = dict(zip("━─│╭╮╰╯◆█…", "--|++++*#.", strict=True))
"""The characters that draw our tables and bars, each with one replacement, so that columns stay aligned."""
EXIT_PIPE = 141
"""128 + SIGPIPE, as a shell reports any other program whose reader has gone."""


class OutputLost(NotusError):
    """stdout can't be written to."""

    exit_code = 2


class ReaderGone(OutputLost):
    """The reader of stdout has closed it (`| head -1`), which needs no message."""

    exit_code = EXIT_PIPE


class _Guarded:
    """A stream that hands each `OSError` to `_failed`. Everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, data: Any) -> int:
        if data == "":  # typer probes a stream with it and swallows the error, which would be the only report
            return 0
        try:
            return int(self._stream.write(data))
        except OSError as error:
            self._failed(error)
            return len(data)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    @property
    def buffer(self) -> Any:
        return type(self)(self._stream.buffer)

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError


class _Result(_Guarded):
    def _failed(self, error: OSError) -> None:
        _discard(self._stream)
        if error.errno == errno.EPIPE:
            raise ReaderGone("") from error
        raise OutputLost(
            f"cannot write to stdout: {error.strerror or error}", "free some space, or send the output elsewhere"
        ) from error


class _Progress(_Guarded):
    def _failed(self, error: OSError) -> None:
        _discard(self._stream)


@contextlib.contextmanager
def reliable_streams() -> Iterator[None]:
    """Guard stdout and stderr, and flush stdout at the end. Raises `OutputLost`."""
    _open_closed()
    codecs.register_error(REPLACE, _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors=REPLACE)
    before = sys.stdout, sys.stderr
    result = _Result(sys.stdout)
    sys.stdout, sys.stderr = cast(TextIO, result), cast(TextIO, _Progress(sys.stderr))
    try:
        try:
            yield
        finally:
            result.flush()
    finally:
        sys.stdout, sys.stderr = before


def _replace(error: UnicodeError) -> tuple[str, int]:
    r"""Lines become ASCII lines, anything else `\uXXXX`, which JSON reads back as the original character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or _escape(one) for one in lost), error.end


def _escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _discard(stream: Any) -> None:
    """Send the rest to /dev/null: the interpreter flushes at exit, and would report the same failure again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def _open_closed() -> None:
    """Reopen closed descriptors (`>&-`): otherwise the next file that is opened, such as a checkpoint, gets them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, flags)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
