"""One attempt as its machine sees it: claim the run, start the ranks, keep the lease, mirror the log, say how it ended.

Imports no torch: the supervisor stays responsive while the ranks compute, and refuses bad input at once.
"""

from __future__ import annotations

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
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from checkpoints.errors import Fenced, NotusError
from checkpoints.event_kinds import AttemptEnded, AttemptStarted, Finished, Stopped
from checkpoints.event_kinds import Notice as NoticeEvent
from checkpoints.events import Diary
from checkpoints.head import LEASE_S, Lease, Writer, read_head
from checkpoints.journal import Journal
from checkpoints.requests import Request, read_request, withdraw
from checkpoints.run import HEARTBEAT_KEY, Heartbeat
from checkpoints.shm import RunMemory
from checkpoints.store import Store
from checkpoints.uploader import DRAIN_S
from trainer.notice import AwsMetadata, FileNotice, GcpMetadata, Notice, NoticePoller, NoticeSource
from trainer.processes import adopt_orphans, any_descendant, die_with_parent, kill_descendants
from trainer.recipe import Recipe
from trainer.scratch import BEFORE_TRAINING, Outcome, Scratch
from trainer.stop import read_stop, request_stop
from trainer.tracking import TensorBoardMirror

logger = logging.getLogger(__name__)

PREDECESSOR_GONE = "NOTUS_PREDECESSOR_GONE"
"""Environment: the id of a writer that is known to be dead, from whoever saw its machine terminated."""
TICK_S = 0.5
HEARTBEAT_S = 5.0
STOP_GRACE_S = 600.0
"""How long an attempt may take to save and end after a stop; a step of a 7B model and its save take far less."""


def pid_scope() -> str:
    """Identifies where a pid means something: this boot of the kernel, and this container's pid namespace."""
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
        self._request: Request | None = None

    def run(self, *, gone: str = "", wait_s: float = 0.0) -> Outcome:
        """Run the attempt to its end and return how it ended.

        `gone` is the id of a predecessor that is known to be dead (see `checkpoints.head.next_claim`). Raises `RunHeld`
        if somebody else holds the run for longer than `wait_s`, before any process is started.
        """
        self._scratch.folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), pid_scope=pid_scope())
        before = read_head(self._store)
        self._lease = Lease.claim(self._store, writer, gone=gone, wait_s=wait_s)
        head = self._lease.head
        self._predecessor = before.writer.id if before else ""
        memory = RunMemory(self._store.url)
        memory.remove_dead(keep=self._predecessor)
        self._scratch.write_head(head)
        self._diary = Diary(self._store, head.epoch)
        self._diary.write(AttemptStarted(host=writer.host, processes=self._processes, recipe=self._recipe.name))
        self._journal = Journal(self._store, f"logs/a{head.epoch:04d}", self._scratch.log)
        self._tensorboard = TensorBoardMirror(self._store, self._scratch.tensorboard)
        outcome = Outcome(kind="failed", message="the attempt ended without an outcome")
        try:
            stopped = Outcome(kind="preempted", step=self._resumed_step())
            outcome = stopped if self._must_stop() else self._supervise()
            outcome = outcome.model_copy(update={"progressed": self._has_committed()})
            if outcome.kind == "preempted" and self._request is not None and self._request.action == "stop":
                outcome = outcome.model_copy(update={"kind": "stopped", "message": self._request.reason})
        finally:
            if not (outcome.kind == "failed" and outcome.progressed):  # else the next attempt may restore from it
                memory.forget(writer.id)
            self._finish(outcome)
        return outcome

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
        try:
            decided = self._watch(process)
        finally:
            poller.stop()
            process.kill()
            process.wait()  # before the others are reaped, or its exit code would be lost to them
            if decided is None:
                decided = self._drain_uploaders()
            kill_descendants()
        return decided or self._outcome(process.returncode)

    def _watch(self, process: subprocess.Popen[bytes]) -> Outcome | None:
        """Wait for the ranks; beat, renew and mirror meanwhile.

        Returns an outcome only if it isn't for the ranks to say: we were fenced, or stopped before the first step.
        """
        next_beat = self._next_renewal = time.monotonic()
        deadline = float("inf")
        while process.poll() is None:
            now = time.monotonic()
            try:
                self._keep_lease()
                if now >= next_beat:
                    self._beat()
                    self._must_stop()
                    self._journal.sync()
                    self._tensorboard.sync()
                    next_beat = now + HEARTBEAT_S
            except Fenced as error:
                return Outcome(kind="fenced", message=error.message, hint=error.hint)
            except NotusError as error:
                # The store may be back before the lease runs out; a save that fails for good ends the ranks.
                logger.warning("the bucket does not answer: %s", error.message)
                next_beat = self._next_renewal = now + HEARTBEAT_S
            if deadline == float("inf") and (stop := read_stop(self._scratch.stop)) is not None:
                deadline = now + STOP_GRACE_S
                step = self._scratch.read_progress().step
                self._diary.try_write(NoticeEvent(source=stop.source, deadline=stop.deadline, step=step))
                if self._scratch.read_progress().phase in BEFORE_TRAINING:
                    # Nothing to save yet; the ranks would hear of it only after minutes of tokenising or loading.
                    return Outcome(kind="preempted", step=self._resumed_step())
            if now > deadline:
                logger.error("the ranks did not stop within %.0f s: killing them", STOP_GRACE_S)
                return None
            try:
                process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                continue
        return None

    def _must_stop(self) -> bool:
        """Has somebody asked this attempt, through the bucket, to save and end? The ranks hear of it as of a notice."""
        request = read_request(self._store)
        if request is None or not request.is_for(self._lease.head.epoch):
            return False
        self._request = request
        request_stop(self._scratch.stop, request.action)
        return True

    def _resumed_step(self) -> int:
        commits = self._lease.head.commits
        return commits[0].step if commits else 0

    def _has_committed(self) -> bool:
        try:
            head = read_head(self._store)
        except NotusError:
            return False
        return bool(head and head.commits and head.commits[0].epoch == self._lease.head.epoch)

    def _drain_uploaders(self) -> Outcome | None:
        """Ranks that died may have left a whole snapshot behind: their uploaders finish and commit it.

        Returns an outcome only if we were fenced meanwhile.
        """
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and any_descendant("checkpoints.uploader"):
            try:
                self._keep_lease()
            except Fenced as error:
                return Outcome(kind="fenced", message=error.message, hint=error.hint)
            except NotusError as error:  # the store may be back before the lease runs out
                logger.warning("the bucket does not answer: %s", error.message)
                self._next_renewal = time.monotonic() + HEARTBEAT_S
            time.sleep(TICK_S / 5)
        return None

    def _keep_lease(self) -> None:
        now = time.monotonic()
        if now >= self._next_renewal:
            self._lease.renew()
            self._next_renewal = now + LEASE_S / 3

    def _outcome(self, returncode: int) -> Outcome:
        return combine_outcomes(
            self._scratch.read_outcomes(),
            processes=self._processes,
            step=self._scratch.read_progress().step,
            returncode=returncode,
        )

    def _finish(self, outcome: Outcome) -> None:
        """Leave everything in the bucket that a successor or a person wants; each part on its own."""
        step = max(outcome.step, self._scratch.read_progress().step)
        self._best_effort("the log", lambda: self._journal.sync(whole=True))
        self._best_effort("TensorBoard's files", self._tensorboard.sync)
        self._diary.try_write(AttemptEnded(outcome=outcome.kind, step=step, message=outcome.message))
        if outcome.kind == "finished":
            self._diary.try_write(Finished(step=outcome.step))
        if outcome.kind == "stopped":
            limit = self._request.limit if self._request is not None else None
            self._diary.try_write(Stopped(step=outcome.step, reason=outcome.message, limit=limit))
        if outcome.kind in ("finished", "stopped"):
            self._best_effort("the request to stop", lambda: withdraw(self._store))
        if outcome.kind != "fenced":
            self._best_effort("the lease", self._lease.release)

    def _best_effort(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except NotusError as error:
            logger.warning("could not leave %s in the bucket: %s", what, error.message)

    def _beat(self) -> None:
        progress = self._scratch.read_progress()
        heartbeat = Heartbeat(attempt=self._lease.head.epoch, time=datetime.now(UTC), **progress.model_dump())
        self._store.put(HEARTBEAT_KEY, heartbeat.to_json())

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        request_stop(self._scratch.stop, signal.Signals(signum).name)

    def _on_notice(self, notice: Notice) -> None:
        logger.warning("preemption notice from %s, deadline %s", notice.source, notice.deadline)
        request_stop(self._scratch.stop, notice.source, notice.deadline)

    def _command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={self._processes}",
            "--standalone",
            "--max-restarts=0",
            "-m",
            "trainer.worker",
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


def combine_outcomes(outcomes: Mapping[int, Outcome], *, processes: int, step: int, returncode: int) -> Outcome:
    """The attempt's outcome from those of its ranks, by rank: the worst that one of them said.

    A rank that died without a word is named first: the others' errors are then mostly that it is gone.
    """
    for kind in ("fenced", "user_error"):
        for outcome in outcomes.values():
            if outcome.kind == kind:
                return outcome
    silent = [rank for rank in range(processes) if rank not in outcomes]
    failed = [f"rank {rank}: {outcome.message}" for rank, outcome in outcomes.items() if outcome.kind == "failed"]
    if silent:
        names = ", ".join(map(str, silent))
        failed.insert(0, f"rank {names} died without a word (torchrun ended with {returncode})")
    if failed:
        hint = "see `notus-launch logs`" + ("; the kernel kills like this when memory runs out" if silent else "")
        return Outcome(kind="failed", step=step, message="; ".join(failed), hint=hint)
    return outcomes[0]


def notice_sources(environment: Mapping[str, str], scratch: Path) -> list[NoticeSource]:
    """Whom to ask for a notice: the metadata server of the cloud that SkyPilot says we are in, and a file.

    Nobody is asked where SkyPilot didn't start us: a laptop has no metadata server, and its network isn't ours.
    """
    sources: list[NoticeSource] = [FileNotice(Path(environment.get("NOTUS_NOTICE_FILE") or scratch / "notice"))]
    try:
        cloud = str(json.loads(environment.get("SKYPILOT_CLUSTER_INFO", "{}")).get("cloud", "")).lower()
    except (ValueError, AttributeError):
        cloud = ""
    if cloud == "gcp":
        sources.append(GcpMetadata())
    elif cloud == "aws":
        sources.append(AwsMetadata())
    return sources


def rank_environment(
    base: Mapping[str, str], *, recipe: str, run: str, bucket: str, scratch: Path, cpu: bool, predecessor: str = ""
) -> dict[str, str]:
    """The environment of the ranks. `predecessor` is the writer whose memory may still be on this machine."""
    environment = {
        **base,
        # ninja and torchrun's children are looked up by name
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

    SkyPilot sets CUDA_VISIBLE_DEVICES to what was asked for, also where the driver shows no GPU.
    """
    found = len([path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()])
    if (devices / "dxg").exists():  # WSL: one device for all
        found = max(found, 1)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not found:
        return found
    return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
