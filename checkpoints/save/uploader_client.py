"""A rank's side of its uploader process."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import weakref

from pydantic import BaseModel

from checkpoints.errors import StoreError
from checkpoints.save.uploader_messages import Abandon, Done, Job, Sent, Setup, parse_output
from checkpoints.util.interpreter import environment, module

_clients: weakref.WeakSet[UploaderClient] = weakref.WeakSet()


def _close_pipes() -> None:
    """Close the pipes to the uploaders in a forked child, such as a data loader's worker.

    As long as the child holds a copy of a pipe, an uploader whose rank is dead would wait for more.
    """
    for client in list(_clients):
        client.close_pipe()


os.register_at_fork(after_in_child=_close_pipes)


class UploaderClient:
    """A rank's side. Not thread-safe, except `submit`, which may be called from the thread that made the copy."""

    def __init__(self, setup: Setup) -> None:
        self._results: queue.SimpleQueue[Done | None] = queue.SimpleQueue()
        self.sent = Sent(number=0, sent_bytes=0)
        """The last progress of the job in flight."""
        self._process = subprocess.Popen(
            module("checkpoints.save.uploader"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # a signal to the rank's group must not reach the uploader
        )
        _clients.add(self)
        self._send(setup)
        self._listening = threading.Thread(target=self._listen, name="uploader-results", daemon=True)
        self._listening.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def close_pipe(self) -> None:
        """Close only the descriptor: another thread may have been writing to its buffer when this process forked."""
        with contextlib.suppress(OSError):
            self._process.stdin.raw.close()  # type: ignore[union-attr]  # a BufferedWriter

    def submit(self, job: Job) -> None:
        """Hand over a snapshot. Its buffer must not change until the job's `Done` has arrived."""
        self._send(job)

    def abandon(self, number: int) -> None:
        """Abandon save `number`; its `Done` reports it."""
        self._send(Abandon(abandon=number))

    def poll(self) -> Done | None:
        """A result that has already arrived, or None. Raises `StoreError` if the uploader has died."""
        with contextlib.suppress(queue.Empty):
            return self._checked(self._results.get_nowait())
        return None

    def wait(self) -> Done:
        """The next result, however long it takes. Raises `StoreError` if the uploader has died."""
        return self._checked(self._results.get())

    def close(self) -> None:
        """Let the uploader finish what it has, and reap it."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()
        self._listening.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _send(self, message: BaseModel) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._dead() from error

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = parse_output(line)
            if isinstance(message, Sent):
                self.sent = message
            else:
                self._results.put(message)
        self._results.put(None)

    def _checked(self, result: Done | None) -> Done:
        if result is None:
            self._results.put(None)
            raise self._dead()
        return result

    def _dead(self) -> StoreError:
        return StoreError(
            f"the uploader process has died (exit code {self._process.poll()})",
            "see the log of the attempt; a likely cause is running out of memory",
        )
