"""One run as a managed job on the loopback clouds: submitted, watched from the bucket and from SkyPilot, compared."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from checkpoints.run_log.event_log import Event, read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from launcher.local.backend import committed_step
from launcher.planning.plan import Candidate
from launcher.sky.render import SKYPILOTS_OWN, task_config, to_yaml
from tests.e2e.clouds import Clouds
from tests.e2e.holds import Hold
from tests.e2e.skypilot import SkyPilot
from tests.integration.conftest import wait_for
from tests.support.seaweed import S3Server
from trainer.config.recipe import load_recipe
from trainer.runtime.attempt_dir import Phase

LAMBDA = Candidate(cloud="lambda", gpus="A100:8", spot=False)
GCP = Candidate(cloud="gcp", gpus="A100:8", spot=False)
GCP_SPOT = Candidate(cloud="gcp", gpus="A100:8", spot=True)
NEAR = Candidate(cloud="gcp/us-central1", gpus="A100:8", spot=True)
"""Of one region: where a scenario is about a stock-out, ten more regions only take minutes."""
QUICK = {"NOTUS_CHECK_MIN": "0.1", "NOTUS_RESTART_MIN": "0.02"}
"""A run of two minutes is looked at more often, and its machines start faster than a cloud's."""
BUDGET_USD = 0.75
"""Four minutes of a spot machine at $11 an hour: two more than its set-up takes on a loaded machine."""
BUCKET = "s3://runs"
START_S = 420.0
"""From the submission to the first step, on a loaded machine."""


@dataclass
class Beside:
    """A command of `notus-launch`."""

    said: str = ""


class CloudRun:
    """A managed job of tiny-dpo."""

    def __init__(self, clouds: Clouds, bucket: S3Server, name: str, skypilot: SkyPilot | None = None) -> None:
        self._clouds = clouds
        self._skypilot = skypilot or clouds.skypilot
        self._bucket = bucket
        self.name = name
        self._hold = Hold(clouds.holds, name)
        self.store: Store = open_run(BUCKET, name)

    def submit(
        self,
        candidates: Sequence[Candidate],
        strategy: str = SKYPILOTS_OWN,
        *,
        setup: str | None = None,
        **more_envs: str,
    ) -> None:
        """As a user of plain SkyPilot does."""
        self._task = self._clouds.folder / f"{self.name}.yaml"
        config = task_config(load_recipe("tiny-dpo"), candidates, run=self.name, bucket=BUCKET, strategy=strategy)
        config["envs"] |= more_envs
        config["setup"] = setup or config["setup"]
        self._task.write_text(to_yaml(config))
        settings = self._bucket.environment()
        envs = [f"{name}={settings[name]}" for name in ("AWS_ENDPOINT_URL", "AWS_REGION")]
        secrets = [f"{name}={settings[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        options = [part for env in envs for part in ("--env", env)]
        options += [part for secret in (*secrets, "HF_TOKEN=none") for part in ("--secret", secret)]
        self._skypilot.sky("jobs", "launch", "-y", "-d", "-n", self.name, str(self._task), *options)

    def launch(self, *options: str) -> subprocess.Popen[str]:
        """By `notus-launch`, which follows the run; its output is in a file beside the clouds."""
        command = ["notus-launch", "--recipe", "tiny-dpo", "--bucket", BUCKET, "--name", self.name, "--yes", *options]
        with self.output.open("a") as output:
            return subprocess.Popen(
                command, env=self._environment(), stdout=output, stderr=output, text=True, cwd=self._clouds.folder
            )

    def notus(self, *arguments: str) -> str:
        """Another command of `notus-launch`, to its end."""
        with self.beside(*arguments) as command:
            pass
        return command.said

    @contextlib.contextmanager
    def beside(self, *arguments: str) -> Iterator[Beside]:
        """The same while the block runs; what it said is known after it."""
        with subprocess.Popen(
            ["notus-launch", *arguments],
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            command = Beside()
            yield command
            command.said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, command.said

    def _environment(self) -> dict[str, str]:
        return {**self._skypilot.environment, **self._bucket.environment(), "NOTUS_BUCKET": BUCKET}

    @property
    def output(self) -> Path:
        return self._clouds.folder / f"{self.name}.out"

    def status(self) -> tuple[str, int, str]:
        """Status, recoveries and the reason of a failure, from SkyPilot's own database: asking its server takes seconds."""
        rows = self._query(
            "select status, recovery_count, failure_reason from spot where task_name = ? or job_name = ?",
            self.name,
            self.name,
        )
        return rows[-1] if rows else ("", 0, "")

    def recovering_at(self) -> float:
        """When SkyPilot first said that the job needs another machine, seconds since 1970."""
        query = (
            "select min(strftime('%s', timestamp) + strftime('%f', timestamp) - strftime('%S', timestamp)) "
            "from job_events where new_status = 'RECOVERING' and spot_job_id in "
            "(select spot_job_id from spot where task_name = ? or job_name = ?)"
        )
        return float(self._query(query, self.name, self.name)[0][0])

    def _query(self, query: str, *parameters: str) -> list[Any]:
        try:
            database = sqlite3.connect(f"file:{self._skypilot.home}/.sky/spot_jobs.db?mode=ro", uri=True)
        except sqlite3.OperationalError:  # the server has not made it yet
            return []
        try:
            return database.execute(query, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return []  # it is just being made
        finally:
            database.close()

    def events(self) -> list[Event]:
        return read_events(self.store)

    def machine(self) -> dict[str, Any]:
        """The machine that it runs on."""
        found = self.machines()
        assert len(found) == 1, found
        return found[0]

    def machines(self) -> list[dict[str, Any]]:
        """Those that it has now."""
        return [machine for machine in self._clouds.running() if machine["name"].startswith(f"{self.name}-")]

    def every_machine(self) -> list[dict[str, Any]]:
        """Those that it has or had, oldest first."""
        mine = [one for one in self._clouds.state()["machines"] if one["name"].startswith(f"{self.name}-")]
        return sorted(mine, key=lambda machine: machine["started_at"])

    def freeze_in(self, phase: Phase, *, step: int = 0, timeout_s: float = START_S) -> None:
        """Hold the training as soon as it is in `phase` and has done `step`: that of a tiny model is over before any
        preemption arrives. Uploads, heartbeats and the log go on."""
        self._hold.set(phase, step)
        self.wait(f"{phase}, step {step}", lambda: self._hold.holds, timeout_s)

    def freeze_after_save(self) -> None:
        """At step 8, when the save of step 5 is committed: then a successor has something to resume."""
        self.freeze_in("training", step=8)
        self.wait("the save of step 5", lambda: committed_step(self.store) >= 5)

    def thaw(self) -> None:
        """The training goes on."""
        self._hold.release()

    def preempt_for_good(self) -> None:
        """The machine dies without a word, and its zone has none left, to the end of the scenario: as when a spot market
        tightens."""
        machine = self.machine()
        self._clouds.control("shortage", **{f"{machine['place']}/{machine['kind']}": 0})
        self._clouds.control("preempt", id=machine["id"], notice=False)

    def kill_supervisor(self) -> None:
        """SIGKILL, as the kernel sends it where memory is short: nothing is noted, and the machine stays."""
        (supervisor,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(part.endswith("/notus-train") for part in process.info["cmdline"] or [])
            and self.name in process.info["cmdline"]
        ]
        supervisor.kill()

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = START_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self.status()[0].startswith("FAILED"):
                raise AssertionError(f"{what} did not happen: {self.status()}\n{self.story()}")
            time.sleep(0.2)

    def wait_for_status(self, *wanted: str) -> None:
        """Of a job that shall fail."""
        wait_for(lambda: self.status()[0] in wanted, " or ".join(wanted), timeout_s=START_S)

    def wait_until_done(self, timeout_s: float = START_S) -> None:
        """Until the training is; SkyPilot notices later, see `check_endings`."""
        ended = "attempt_ended"
        self.wait("the end", lambda: any(event.data["outcome"] == "finished" for event in of(self, ended)), timeout_s)
        later(lambda: self.wait("SkyPilot's own end", lambda: self.status()[0] == "SUCCEEDED", 120))

    def wait_for_the_end_of_its_machines(self, timeout_s: float = 120) -> None:
        """SkyPilot takes them down after it has said that the job is over."""
        wait_for(lambda: not self.machines(), f"the end of {self.name}'s machines", timeout_s=timeout_s)

    def story(self) -> str:
        """What is known, for a failed test."""
        lines = [f"{event.time:%H:%M:%S} {event.kind} {json.dumps(event.data)[:200]}" for event in self.events()]
        lines += [json.dumps(event) for event in self._clouds.state()["events"][-20:]]
        homes = (self._skypilot.home, *self._clouds.folder.glob("machines/*/upper/home/ubuntu"))
        logs = [log for home in homes for log in sorted(home.glob("sky_logs/jobs_controller/[0-9]*.log"))]
        if self.output.exists():
            lines.append(self.output.read_text())
        return "\n".join([*lines, *(log.read_text()[-3000:] for log in logs[-1:])])


ENDING: list[Callable[[], None]] = []
"""What is still to be checked of scenarios that are over but for waits."""


def later(check: Callable[[], None]) -> None:
    """Check it at the end of the next scenario: it waits, and raises where that is in vain."""
    ENDING.append(check)


def check_endings(checks: Sequence[Callable[[], None]]) -> None:
    """Those that earlier scenarios have left. One may leave another."""
    for check in checks:
        ENDING.remove(check)
        check()


def of(run: CloudRun, kind: str) -> list[Event]:
    """The run's events of a kind, in order."""
    return [event for event in run.events() if event.kind == kind]


def places(run: CloudRun) -> list[dict[str, object]]:
    """Where it was, in order."""
    return [event.data["place"] for event in of(run, "machine_up")]


def lost_steps(run: CloudRun) -> int:
    """Steps between what the first attempt did and where the second went on."""
    (ended,) = [event for event in of(run, "attempt_ended") if event.attempt == 1]
    (resumed,) = [event for event in of(run, "resumed") if event.attempt == 2]
    return int(ended.data["step"]) - int(resumed.data["step"])
