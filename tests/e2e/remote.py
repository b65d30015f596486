"""The scenario of a jobs controller on a VM of its own, which goes on in a thread beside others: it is twice as long."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from checkpoints.storage.base import Store
from tests.e2e.clouds import Clouds
from tests.e2e.runs import CloudRun, of, places
from tests.e2e.skypilot import SkyPilot
from tests.integration.conftest import assert_bit_exact, wait_for
from tests.support.seaweed import S3Server

PORT = 46998
RUN = "remote"
CONTROLLER = "sky-jobs-controller"
CONFIG = """\
jobs:
  force_disable_cloud_bucket: true  # files go over the controller: the clouds here have no storage of their own
  controller:
    consolidation_mode: false
    resources: {infra: gcp/us-central1}
"""


class Remote:
    """Another SkyPilot than the other scenarios', whose user wants a VM for the controller."""

    def __init__(self, clouds: Clouds, bucket: S3Server, cache: Path, reference: Future[Store]) -> None:
        self._clouds = clouds
        self._reference = reference
        self._skypilot = SkyPilot(clouds.folder / "remote", PORT, cache)
        self._run = CloudRun(clouds, bucket, RUN, self._skypilot)
        self._end: Future[None] = Future()

    def begin(self) -> None:
        """In a thread. The other scenarios leave its machines alone until `stop`."""
        self._clouds.beside = (f"{RUN}-", CONTROLLER)
        threading.Thread(target=self._until_its_end, daemon=True).start()

    def result(self, timeout_s: float) -> None:
        """Wait for its end; raises what it has raised."""
        self._end.result(timeout_s)

    def stop(self) -> None:
        """Nothing of it is left, also where it failed; may be called twice."""
        if not self._clouds.beside:
            return
        self._skypilot.stop()
        for machine in self._clouds.running():
            if machine["name"].startswith(self._clouds.beside):
                self._clouds.control("preempt", id=machine["id"], notice=False)
        self._clouds.beside = ()
        assert self._skypilot.processes() == []

    def _until_its_end(self) -> None:
        try:
            self._scenario()
        except BaseException as error:  # for who waits
            self._end.set_exception(error)
        else:
            self._end.set_result(None)

    def _scenario(self) -> None:
        clouds, run = self._clouds, self._run
        launcher = self._launch()
        run.freeze_in("training", step=8, timeout_s=900)
        first, controller = run.machine(), self._controllers()[0]
        assert self._wheels_on(controller) == [self._wheel()]
        clouds.control("preempt", id=first["id"], notice=False)
        assert launcher.wait(600) == 0, run.story()
        assert [event.data["why"] for event in of(run, "machine_gone")] == ["preempted"]
        assert [place["zone"] == first["place"] for place in places(run)] == [True, False]
        assert_bit_exact(run.store, self._reference.result())
        run.wait_for_the_end_of_its_machines()  # SkyPilot ends no controller that has a job
        assert self._controllers() == [controller], "one for the whole run"
        name = f"{CONTROLLER}-{(self._skypilot.home / '.sky/user_hash').read_text()}"
        self._skypilot.sky("down", "-y", name, answer="delete\n")
        wait_for(lambda: not self._controllers(), "the controller's end", timeout_s=60)

    def _launch(self) -> subprocess.Popen[str]:
        self._skypilot.make_home()
        (self._skypilot.home / ".sky/config.yaml").write_text(CONFIG)
        self._skypilot.run("notus-launch", "doctor", "--fix")
        self._skypilot.start()
        self._skypilot.sky("check", "gcp")
        return self._run.launch("--cloud", "gcp", "--gpus", "A100:8")

    def _controllers(self) -> list[dict[str, Any]]:
        """The machines that run SkyPilot's controller."""
        return [machine for machine in self._clouds.running() if machine["name"].startswith(CONTROLLER)]

    def _wheels_on(self, machine: dict[str, Any]) -> list[str]:
        """Those that SkyPilot has installed on a machine, from its disk."""
        home = self._clouds.folder / "machines" / machine["id"] / "upper/home/ubuntu"
        return (home / ".sky/plugins/.installed_wheels").read_text().split()

    def _wheel(self) -> str:
        """The one that `doctor --fix` has built."""
        (wheel,) = (self._skypilot.home / ".sky/notus-wheels").iterdir()
        return wheel.name


@contextlib.contextmanager
def begun(remote: Remote) -> Iterator[Remote]:
    """Stopped whatever happens."""
    remote.begin()
    try:
        yield remote
    finally:
        remote.stop()
