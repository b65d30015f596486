"""The embedded backend: runs the same attempts as on a VM, on this machine.

It supervises one attempt after another, preempts them on request (`--preempt`), restarts after a preemption or a crash,
gives up on a user error, and leaves no process behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

import psutil
from pydantic import BaseModel, ConfigDict, Field

from checkpoints.commit.head import Head, read_head, silent_holder
from checkpoints.errors import NotusError, UserError
from checkpoints.run_log.event_kinds import AttemptEnded, Failed, Preempted, Stopped
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.log_mirror import Journal
from checkpoints.snapshot.shared_memory import RunMemory
from checkpoints.storage.base import Store
from checkpoints.util import owner_locks
from checkpoints.util.interpreter import environment, module
from launcher.errors import RunFailed
from launcher.local.presence import dead_holder, record_launcher
from trainer.runtime import stale_attempts
from trainer.runtime.attempt_dir import Outcome, Progress, Scratch
from trainer.runtime.process_tree import adopt_orphans, die_with_parent, kill_descendants
from trainer.runtime.stop_flag import request_stop
from trainer.supervisor.failed_start import gave_up_because, note_failed_start
from trainer.supervisor.restart_policy import MAX_FAILED_STARTS, gives_up

POLL_S = 0.02
MAX_FRUITLESS_FAILURES = MAX_FAILED_STARTS
"""The same rule as on a VM."""


class LocalRun(BaseModel):
    """The backend's parameters for a run."""

    model_config = ConfigDict(frozen=True)

    run: str
    recipe: str
    bucket: str
    processes: int = Field(ge=1)
    preemptions: int = 0
    seed: int = 0
    """Seed for the steps at which it preempts."""


class Watcher(Protocol):
    """Receives progress, to show it."""

    def attempt_started(self, number: int) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def preempted(self, step: int) -> None: ...

    def attempt_ended(self, outcome: Outcome) -> None: ...

    def stopping(self) -> None: ...


def preemption_points(count: int, seed: int) -> list[float]:
    """Where to preempt, as shares of the run: one random point in each of `count` equal parts.

    So several preemptions never happen in the same second.
    """
    generator = random.Random(seed)  # noqa: S311  # which step is killed is no secret
    return [(index + generator.uniform(0.1, 0.9)) / count for index in range(count)]


class LocalBackend:
    """Executes one run to its end."""

    def __init__(self, run: LocalRun, store: Store, scratch_root: Path, watcher: Watcher) -> None:
        self._run = run
        self._store = store
        self._scratch_root = scratch_root
        self._watcher = watcher
        self._points = preemption_points(run.preemptions, run.seed)
        self._stop_signals = 0
        self._scratch: Scratch | None = None

    def run(self) -> Outcome:
        """Supervise attempts until the run is finished, stopped or given up; returns how the last one ended.

        Raises:
            RunHeld: another launcher or machine holds it and is alive: it changed HEAD while we watched.
            UserError: the trainer rejected the input.
            RunFailed: crashes without progress.
        """
        head = read_head(self._store)
        # Checked before anything is started; the actual protection is the attempt's own claim.
        gone = dead_holder(head) or silent_holder(self._store)
        stale_attempts.sweep(self._scratch_root.parent, "*/attempt-*")
        with self._signals(), self._no_orphans(), record_launcher(self._store):
            while True:
                with self._folder() as scratch:
                    outcome = self._attempt(scratch, gone)
                    claimed = scratch.read_head()
                    # An attempt that died right after its claim has only changed HEAD.
                    gone = claimed.writer.id if claimed else self._dead_holder() or gone
                    if outcome is not None and self._is_final(outcome):
                        return outcome
                    if outcome is not None and outcome.gave_up:
                        raise self._give_up(scratch, outcome)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Scratch]:
        """The folder of an attempt. Everything in it is also in the bucket; a failed attempt's log is kept."""
        folder = self._scratch_root / f"attempt-{time.time_ns()}"
        owner_locks.hold(folder)
        failed = True
        try:
            yield Scratch(folder)
            failed = False
        finally:
            stale_attempts.release(folder, keep_texts=failed)
            with contextlib.suppress(OSError):  # not empty
                self._scratch_root.rmdir()

    # --- one attempt ------------------------------------------------------------------------------

    def _attempt(self, scratch: Scratch, gone: str) -> Outcome | None:
        """Run one attempt; returns its outcome, or None if it was preempted."""
        self._scratch = scratch
        with (scratch.folder / "supervisor.txt").open("wb") as output:
            process = subprocess.Popen(
                self._command(scratch, gone),
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        announced, preempted_at = 0, None
        while process.poll() is None:
            time.sleep(POLL_S)
            if not announced and (head := scratch.read_head()):
                announced = head.epoch
                self._watcher.attempt_started(announced)
            progress = scratch.read_progress()
            self._watcher.progress(progress)
            if self._stop_signals:
                request_stop(scratch.stop)
            if self._stop_signals > 1 or self._preemption_due(progress):
                preempted_at = progress.step
                _kill(process)
        kill_descendants()
        if preempted_at is not None and not self._stop_signals:
            self._record_preemption(scratch, announced, preempted_at)
            return None
        outcome = self._judged(scratch, scratch.read_result())
        self._watcher.attempt_ended(outcome)
        return outcome

    def _preemption_due(self, progress: Progress) -> bool:
        if not self._points or not progress.total_steps or progress.phase not in ("training", "saving"):
            return False
        if progress.step < math.ceil(self._points[0] * progress.total_steps):
            return False
        self._points.pop(0)
        return True

    def _record_preemption(self, scratch: Scratch, attempt: int, step: int) -> None:
        """Send the rest of a killed attempt's log, and record the preemption."""
        self._watcher.preempted(step)
        Journal(self._store, f"logs/a{attempt:04d}", scratch.log).sync(whole=True)
        Diary(self._store, attempt).write(Preempted(step=step, by="--preempt"))

    def _command(self, scratch: Scratch, gone: str) -> list[str]:
        run = self._run
        command = [*module("trainer.main"), run.recipe, "--run", run.run, "--bucket", run.bucket]
        command += ["--processes", str(run.processes), "--scratch", str(scratch.folder), "--predecessor-gone", gone]
        command.append("--no-wait")
        return command

    def _dead_holder(self) -> str:
        try:
            return dead_holder(read_head(self._store))
        except NotusError:
            return ""

    # --- after an attempt -------------------------------------------------------------------------

    def _is_final(self, outcome: Outcome) -> bool:
        """Does the run end here? Raises errors that the user must fix."""
        if outcome.kind in ("finished", "stopped"):
            return True
        if outcome.kind == "fenced":
            raise RunFailed(outcome.message, outcome.hint)
        if outcome.kind == "user_error":
            if self._claimed():  # else another process has the run, and we must not write to its diary
                self._diary().try_write(Failed(message=outcome.message))
            raise UserError(outcome.message, outcome.hint)
        if self._stop_signals:
            self._diary().try_write(Stopped(step=max(0, committed_step(self._store))))
            return True
        return False

    def _judged(self, scratch: Scratch, result: Outcome | None) -> Outcome:
        """How the attempt ended. Failures that it could not record and count itself are recorded and counted here."""
        claimed = scratch.read_head()
        killed = Outcome(
            kind="failed", step=scratch.read_progress().step, message="the attempt was killed from outside"
        )
        outcome = result or killed
        if outcome.kind != "failed" or (claimed and result) or self._stop_signals:
            return outcome
        try:
            if claimed is None:
                gave_up = not note_failed_start(self._store, outcome.message, "notus-train")
            else:
                diary = Diary(self._store, claimed.epoch)
                diary.write(AttemptEnded(outcome=outcome.kind, step=outcome.step, message=outcome.message))
                if gave_up := gives_up(read_events(self._store)):
                    diary.write(Failed(message=gave_up_because(outcome.message), exit_code=RunFailed.exit_code))
        except NotusError as error:  # without the diary the number of tries is not known
            return outcome.model_copy(update={"gave_up": True, "message": f"{outcome.message}; {error.message}"})
        return outcome.model_copy(update={"gave_up": gave_up})

    def _give_up(self, scratch: Scratch, outcome: Outcome) -> RunFailed:
        return RunFailed(
            gave_up_because(outcome.message),
            f"log: notus-launch logs {self._run.run}   (local copy: {scratch.log})",
        )

    def _claimed(self) -> Head | None:
        return self._scratch.read_head() if self._scratch else None

    def _diary(self) -> Diary:
        head = self._claimed()
        return Diary(self._store, head.epoch if head else 0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM: once = save and stop, twice = stop now."""

        def on_signal(signum: int, frame: FrameType | None) -> None:
            self._stop_signals += 1
            self._watcher.stopping()

        old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _no_orphans(self) -> Iterator[None]:
        adopt_orphans()
        try:
            yield
        finally:
            kill_descendants()
            RunMemory(self._store.url).remove_dead()  # left by attempts that were killed or failed


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the attempt and all its descendants at once, like the loss of a machine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        for victim in (process.pid, *(child.pid for child in below)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    process.wait()


def committed_step(store: Store) -> int:
    """The step that the next attempt resumes from; -1 if there is none yet, or if HEAD can't be read."""
    try:
        head = read_head(store)
    except NotusError:
        return -1
    return head.commits[0].step if head and head.commits else -1
