"""Runs one attempt on its machine: claim the run, start the ranks, keep the lease, mirror the log, report the outcome.

Doesn't import torch: the supervisor stays responsive while the ranks compute, and rejects bad input immediately.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from checkpoints.commit.claimed_store import ClaimedStore
from checkpoints.commit.head import LEASE_S, Lease, Writer, read_head
from checkpoints.errors import NotusError
from checkpoints.run_log.event_kinds import Alarm, AttemptEnded, AttemptStarted, Failed, Finished, Payload, Stopped
from checkpoints.run_log.event_kinds import Notice as NoticeEvent
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.log_mirror import Journal
from checkpoints.run_log.stop_request import withdraw
from checkpoints.save.uploader_messages import DRAIN_S
from checkpoints.snapshot.shared_memory import RunMemory
from checkpoints.storage.base import Store
from checkpoints.util.clock import SystemClock
from checkpoints.util.interpreter import environment as safe_environment
from checkpoints.util.interpreter import module
from trainer.config.clouds import CLOUDS
from trainer.config.recipe import Recipe
from trainer.data.input_hash import inputs_digest
from trainer.errors import EXIT_FAILED
from trainer.metrics.tracker_setup import TensorBoardMirror
from trainer.runtime.attempt_dir import BEFORE_TRAINING, Outcome, Progress, Scratch
from trainer.runtime.preemption_notice import SOURCES, FileNotice, Notice, NoticePoller, NoticeSource
from trainer.runtime.process_tree import adopt_orphans, any_descendant, die_with_parent, kill_descendants
from trainer.runtime.startup_phases import in_words, quiet_limit_s
from trainer.runtime.stop_flag import read_stop, request_stop
from trainer.supervisor.bucket_upkeep import TICK_S, Upkeep
from trainer.supervisor.dead_mans_switch import BUCKET_AWAY_S, DeadMansSwitch, Verdict, machine_age_s
from trainer.supervisor.failed_start import conducted, gave_up_because
from trainer.supervisor.restart_policy import gives_up, passed_before

logger = logging.getLogger(__name__)

PREDECESSOR_GONE = "NOTUS_PREDECESSOR_GONE"
"""Environment variable: the id of a writer that is known to be dead, because its machine was seen terminated."""
STOP_GRACE_S = 600.0
"""How long an attempt may take to save and end after a stop; a step of a 7B model and its save take far less."""
HUNG_S = 1200.0
HUNG_GRACE_S = 60.0
"""The same for ranks without a new step or phase for `HUNG_S`: they hang in a collective or a kernel, and don't check
for a stop."""
FINISH_S = 180.0
"""For the final records of an attempt; one request to an unavailable bucket may take two more minutes."""
KILL_S = 60.0
"""A killed process may take this long to be gone: the kernel closes its files first."""


def pid_scope() -> str:
    """Identifies where a pid is valid: this boot of the kernel, and this container's pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Supervisor:
    """Runs one attempt on this machine."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_name: str,
        *,
        run: str,
        bucket: str,
        store: Store,
        scratch: Scratch,
        processes: int,
    ) -> None:
        self._recipe = recipe
        self._recipe_name = recipe_name
        self._run = run
        self._bucket = bucket
        self._store = store
        self._scratch = scratch
        self._processes = processes
        self._verdict: Verdict = ""
        self._kill_at = float("inf")
        """Until then the ranks may act on a stop."""
        self._inputs = inputs_digest(recipe)
        self._switch = DeadMansSwitch(os.environ, age_s=machine_age_s(), now_s=time.monotonic())

    def run(self, *, gone: str = "", wait_s: float = 0.0) -> Outcome:
        """Run the attempt to its end and return how it ended.

        `gone` is the id of a predecessor that is known to be dead (see `checkpoints.commit.head.next_claim`). Raises
        `RunHeld` if another writer holds the run for longer than `wait_s`, before any process is started.
        """
        self._scratch.folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), pid_scope=pid_scope())
        before = read_head(self._store)
        head = Lease.claim(self._store, writer, gone=gone, wait_s=wait_s).head
        self._store = ClaimedStore(self._store)
        self._lease = Lease(self._store, head, SystemClock(), LEASE_S)
        self._predecessor = before.writer.id if before else ""
        memory = RunMemory(self._store.url)
        memory.remove_dead(keep=self._predecessor)
        self._scratch.write_head(head)
        self._diary = Diary(self._store, head.epoch)
        self._diary.write(
            AttemptStarted(host=writer.host, processes=self._processes, recipe=self._recipe.name, inputs=self._inputs)
        )
        self._journal = Journal(self._store, f"logs/a{head.epoch:04d}", self._scratch.log)
        self._tensorboard = TensorBoardMirror(self._store, self._scratch.tensorboard)
        self._upkeep = Upkeep(
            self._store,
            self._lease,
            self._diary,
            self._scratch,
            mirrors=(self._journal.sync, self._tensorboard.sync),
            controller=self._switch.controller,
        )
        outcome = Outcome(kind="failed", message="the attempt ended without an outcome")
        try:
            stopped = Outcome(kind="preempted", step=self._resumed_step())
            outcome = self._judge(stopped if self._stop_requested() else self._supervise())
        except Exception as error:  # a full disk, no memory for a process: this machine's fault doesn't end the run
            logger.exception("the supervisor failed")
            outcome = self._judge(Outcome(kind="failed", message=f"{type(error).__name__}: {error}"))
        finally:
            if not (outcome.kind == "failed" and outcome.progressed):  # else the next attempt may restore from it
                memory.forget(writer.id)
            outcome = self._finish(outcome)
        return outcome

    def _stop_requested(self) -> bool:
        try:
            return self._upkeep.check_request()
        except NotusError as error:
            logger.warning("the bucket does not respond: %s", error.message)
            return False

    def _supervise(self) -> Outcome:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        adopt_orphans()
        with self._scratch.log.open("ab", buffering=0) as log:
            process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )
        decided = None
        poller = NoticePoller(notice_sources(os.environ, self._scratch.folder), self._on_notice)
        poller.start()
        self._upkeep.start()
        try:
            decided = self._watch(process)
        finally:
            poller.stop()
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL_S)  # before the others are reaped, or its exit code would be lost to them
            if decided is None or decided.kind == "failed":
                decided = self._drain_uploaders() or decided
            kill_descendants()
        return decided or self._outcome(process.returncode)

    def _watch(self, process: subprocess.Popen[bytes]) -> Outcome | None:
        """Wait for the ranks, and for what ends them. Nothing here waits for the bucket.

        Returns an outcome only if the ranks can't report it: we were fenced, stopped before the first step, or they
        hang.
        """
        stop_seen = False
        while process.poll() is None:
            now = time.monotonic()
            if (error := self._upkeep.fenced) is not None:
                return Outcome(kind="fenced", message=error.message, hint=error.hint)
            progress = self._scratch.read_progress()
            stuck_s = self._switch.stuck_s(progress, now)
            self._raise_alarm(progress, now)
            if (hopeless := self._keep_limits(progress, now)) is not None:
                return hopeless
            if not stop_seen and (stop := read_stop(self._scratch.stop)) is not None:
                stop_seen = True
                self._kill_at = min(self._kill_at, now + (HUNG_GRACE_S if stuck_s > HUNG_S else STOP_GRACE_S))
                self._upkeep.note(NoticeEvent(source=stop.source, deadline=stop.deadline, step=progress.step))
                if progress.phase in BEFORE_TRAINING:
                    # Nothing to save yet; the ranks would see it only after minutes of tokenizing or loading.
                    return Outcome(kind="preempted", step=self._resumed_step())
            if now > self._kill_at:
                logger.error("the ranks did not stop in time: killing them")
                return None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK_S)
        return None

    def _raise_alarm(self, progress: Progress, now: float) -> None:
        """Raise an alarm before training; during training the controller does."""
        limit_s = quiet_limit_s(progress.phase)
        if limit_s is None or not self._switch.alarm(progress, now):
            return
        stuck_s = self._switch.stuck_s(progress, now)
        ends = f"after {limit_s / 60:.0f} min the attempt is ended"
        logger.warning("%s: no progress for %.0f min; %s", in_words(progress), stuck_s / 60, ends)
        self._upkeep.note(Alarm(step=progress.step, phase=progress.phase, stuck_s=round(stuck_s), message=ends))

    def _keep_limits(self, progress: Progress, now: float) -> Outcome | None:
        """Apply the dead man's switch. For the budget the ranks are asked to save; otherwise they can't: an outcome."""
        if self._verdict:
            return None
        self._verdict = self._switch.verdict(progress, away_s=self._upkeep.away_s(now), now_s=now)
        if self._verdict == "budget":
            logger.warning("this machine has reached the run's budget: saving and stopping")
            seconds = self._switch.save_limit_s(progress.save_s)
            self._kill_at = min(self._kill_at, now + seconds)
            request_stop(self._scratch.stop, "budget", datetime.now(UTC) + timedelta(seconds=seconds))
        elif self._verdict:
            minutes = self._switch.stuck_s(progress, now) / 60
            messages = {
                "hung": f"no progress for {minutes:.0f} min: {in_words(progress)}",
                "bucket away": f"the bucket has not responded for {BUCKET_AWAY_S / 60:.0f} min",
            }
            return Outcome(kind="failed", step=progress.step, message=messages[self._verdict])
        return None

    def _resumed_step(self) -> int:
        commits = self._lease.head.commits
        return commits[0].step if commits else 0

    def _drain_uploaders(self) -> Outcome | None:
        """Ranks that died may have left a complete snapshot behind: their uploaders finish and commit it.

        Returns an outcome only if we were fenced meanwhile.
        """
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and any_descendant("checkpoints.save.uploader"):
            if (error := self._upkeep.fenced) is not None:
                return Outcome(kind="fenced", message=error.message, hint=error.hint)
            time.sleep(TICK_S / 5)
        return None

    def _outcome(self, returncode: int | None) -> Outcome:
        return combine_outcomes(
            self._scratch.read_outcomes(),
            processes=self._processes,
            step=self._scratch.read_progress().step,
            returncode=returncode,
        )

    # --- how it ended -----------------------------------------------------------------------------

    def _judge(self, outcome: Outcome) -> Outcome:
        """Turn the ranks' outcome into what it means for the run."""
        outcome = outcome.model_copy(update={"progressed": self._has_committed()})
        request = self._upkeep.request
        if self._verdict == "budget" and outcome.kind in ("preempted", "failed"):
            message = "the budget is reached on this machine"
            return outcome.model_copy(update={"kind": "stopped", "limit": "budget", "message": message})
        if outcome.kind in ("preempted", "failed") and request is not None and request.action == "stop":
            changes = {"kind": "stopped", "message": request.reason, "limit": request.limit}
            return outcome.model_copy(update=changes)
        if outcome.kind == "user_error" and self._passed_before():
            message = f"{outcome.message} (an earlier attempt with the same input got past this)"
            return outcome.model_copy(update={"kind": "failed", "message": message})
        return outcome

    def _has_committed(self) -> bool:
        try:
            head = read_head(self._store)
        except Exception as error:  # a bucket's client raises what it likes
            logger.warning("HEAD can't be read, taking it as of the last renewal: %s", error)
            head = self._lease.head
        return bool(head and head.commits and head.commits[0].epoch == self._lease.head.epoch)

    def _passed_before(self) -> bool:
        progress = self._scratch.read_progress()
        try:
            events = read_events(self._store)
        except Exception as error:
            logger.warning("the diary can't be read: %s", error)
            return False
        epoch = self._lease.head.epoch
        return passed_before(events, self._inputs, attempt=epoch, phase=progress.phase, step=progress.step)

    def _finish(self, outcome: Outcome) -> Outcome:
        """Leave everything in the bucket that a successor or a user needs, each part separately, while time allows."""
        step = max(outcome.step, self._scratch.read_progress().step)
        lease_is_free = self._upkeep.stop()
        self._finish_by = time.monotonic() + FINISH_S
        if lease_is_free:
            self._best_effort("the notices", self._upkeep.write_notes)
            self._best_effort("the log", lambda: self._journal.sync(whole=True))
            self._best_effort("TensorBoard's files", self._tensorboard.sync)
        self._note(AttemptEnded(outcome=outcome.kind, step=step, message=outcome.message))
        if outcome.kind == "finished":
            self._note(Finished(step=outcome.step))
        if outcome.kind == "stopped" and self._holds_the_run():
            self._note(Stopped(step=step, reason=outcome.message, limit=outcome.limit))
        if outcome.kind == "failed" and not outcome.progressed and self._holds_the_run() and self._gives_up():
            outcome = outcome.model_copy(update={"gave_up": True})
            self._note(Failed(message=gave_up_because(outcome.message), exit_code=EXIT_FAILED))
        if outcome.kind in ("finished", "stopped"):
            self._best_effort("the request to stop", lambda: withdraw(self._store))
        if outcome.kind != "fenced" and lease_is_free:
            self._best_effort("the lease", self._lease.release)
        return outcome

    def _holds_the_run(self) -> bool:
        """Does this attempt still hold the run? If this machine was cut off, the run may have moved elsewhere."""
        try:
            head = read_head(self._store)
        except Exception:  # a bucket's client may raise anything; then the event can't be written either
            return True
        return head is None or head.epoch == self._lease.head.epoch

    def _note(self, payload: Payload) -> None:
        self._best_effort(f"{payload.kind!r}", lambda: self._diary.write(payload))

    def _gives_up(self) -> bool:
        try:
            return gives_up(read_events(self._store))
        except Exception as error:  # a bucket's client may raise anything
            logger.warning("the diary can't be read: %s", error)
            return not conducted(os.environ)

    def _best_effort(self, what: str, act: Callable[[], object]) -> None:
        if time.monotonic() > self._finish_by:  # the machine costs money, and the bucket is unavailable
            logger.warning("no time for %s", what)
            return
        try:
            act()
        except Exception as error:  # a bucket's client may raise anything, and the other parts count too
            logger.warning("could not leave %s in the bucket: %s", what, error)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        request_stop(self._scratch.stop, signal.Signals(signum).name)

    def _on_notice(self, notice: Notice) -> None:
        logger.warning("preemption notice from %s, deadline %s", notice.source, notice.deadline)
        request_stop(self._scratch.stop, notice.source, notice.deadline)

    def _command(self) -> list[str]:
        return [
            *module("torch.distributed.run"),
            f"--nproc-per-node={self._processes}",
            "--standalone",
            "--max-restarts=0",
            f"--log-dir={self._scratch.folder / 'torchrun'}",
            "--no-python",  # torchrun's own way to run a module puts the current folder first
            *module("trainer.training.worker"),
        ]

    def _environment(self) -> dict[str, str]:
        return rank_environment(
            os.environ,
            recipe=self._recipe_name,
            run=self._run,
            bucket=self._bucket,
            scratch=self._scratch.folder,
            cpu=not gpus_here(),
            predecessor=self._predecessor,
        )


def combine_outcomes(outcomes: Mapping[int, Outcome], *, processes: int, step: int, returncode: int | None) -> Outcome:
    """The attempt's outcome from those of its ranks: the worst that one of them reports.

    A rank that died without reporting comes first: the others' errors are then mostly that it is gone.
    """
    for kind in ("fenced", "user_error"):
        for outcome in outcomes.values():
            if outcome.kind == kind:
                return outcome
    silent = [rank for rank in range(processes) if rank not in outcomes]
    failed = [f"rank {rank}: {outcome.message}" for rank, outcome in outcomes.items() if outcome.kind == "failed"]
    if silent:
        names = ", ".join(map(str, silent))
        failed.insert(0, f"rank {names} died without reporting an error (torchrun exited with {returncode})")
    if failed:
        hint = "see `notus-launch logs`" + ("; a likely cause is running out of memory" if silent else "")
        return Outcome(kind="failed", step=step, message="; ".join(failed), hint=hint)
    return outcomes[0]


def notice_sources(environment: Mapping[str, str], scratch: Path) -> list[NoticeSource]:
    """Where to look for a notice: the metadata server of the cloud that SkyPilot reports, and a file.

    If SkyPilot didn't start us, only the file: a laptop has no metadata server, and its network may be anyone's.
    """
    sources: list[NoticeSource] = [FileNotice(Path(environment.get("NOTUS_NOTICE_FILE") or scratch / "notice"))]
    try:
        name = str(json.loads(environment.get("SKYPILOT_CLUSTER_INFO", "{}")).get("cloud", "")).lower()
    except (ValueError, AttributeError):
        name = ""
    cloud = CLOUDS.get(name)
    if cloud is not None and cloud.notice:
        sources.append(SOURCES[cloud.notice]())
    return sources


def rank_environment(
    base: Mapping[str, str], *, recipe: str, run: str, bucket: str, scratch: Path, cpu: bool, predecessor: str = ""
) -> dict[str, str]:
    """The environment of the ranks. `predecessor` is the writer whose memory may still be on this machine."""
    environment = {
        **safe_environment(base),
        # ninja and torchrun's children are found by name
        "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",  # the log is a file: progress bars would be most of it
        "WANDB_RUN_ID": run,
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(scratch),
        "TENSORBOARD_LOGGING_DIR": str(Scratch(scratch).tensorboard),
        "NOTUS_RECIPE": recipe,
        "NOTUS_RUN": run,
        "NOTUS_BUCKET": bucket,
        "NOTUS_SCRATCH": str(scratch),
        "NOTUS_PREDECESSOR": predecessor,
    }
    if cpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return environment


def gpus_here(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """How many NVIDIA GPUs this process may use, without importing torch.

    SkyPilot sets CUDA_VISIBLE_DEVICES to what was requested, even if the driver shows no GPU.
    """
    found = len([path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
    if (devices / "dxg").exists():  # WSL: one device for all
        found = max(found, 1)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not found:
        return found
    return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
