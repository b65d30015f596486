"""A jobs controller on a VM of its own: what `notus-launch doctor --fix` prepares is enough for the NOTUS strategy there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints.store import Store
from tests.e2e.clouds import Clouds
from tests.e2e.conftest import CACHE
from tests.e2e.runs import CloudRun, of, places
from tests.e2e.skypilot import SkyPilot
from tests.integration.conftest import assert_bit_exact, wait_for
from tests.seaweed import S3Server

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


@pytest.fixture
def skypilot(clouds: Clouds) -> Iterator[SkyPilot]:
    """Another SkyPilot than the other scenarios', whose user wants a VM for the controller."""
    made = SkyPilot(clouds.folder / "remote", PORT, CACHE)
    made.make_home()
    (made.home / ".sky/config.yaml").write_text(CONFIG)
    made.run("notus-launch", "doctor", "--fix")
    made.sky("check", "gcp")
    yield made
    made.stop()
    for machine in clouds.running():  # left by a failure, and nobody else looks after them
        if machine["name"].startswith((f"{RUN}-", CONTROLLER)):
            clouds.control("preempt", id=machine["id"], notice=False)
    assert made.processes() == []


def test_the_strategy_acts_on_a_controllers_vm(
    clouds: Clouds, bucket: S3Server, skypilot: SkyPilot, reference: Store
) -> None:
    run = CloudRun(clouds, bucket, RUN, skypilot)
    launcher = run.launch("--cloud", "gcp", "--gpus", "A100:8")
    run.wait("step 8", lambda: run.step() >= 8, 900)
    first, controller = run.machine(), controllers(clouds)[0]
    assert installed(clouds.folder / "machines" / controller["id"]) == [wheel_of(skypilot)]
    clouds.control("preempt", id=first["id"], notice=False)
    assert launcher.wait(600) == 0, run.story()
    assert [event.data["why"] for event in of(run, "machine_gone")] == ["preempted"]
    assert [place["zone"] == first["place"] for place in places(run)] == [True, False]
    assert_bit_exact(run.store, reference)
    run.wait_for_the_end_of_its_machines()  # SkyPilot ends no controller that has a job
    assert controllers(clouds) == [controller], "one for the whole run"
    name = f"{CONTROLLER}-{(skypilot.home / '.sky/user_hash').read_text()}"
    skypilot.sky("down", "-y", name, answer="delete\n")
    wait_for(lambda: not controllers(clouds), "the controller's end", timeout_s=60)


def controllers(clouds: Clouds) -> list[dict[str, Any]]:
    """The machines that run SkyPilot's controller."""
    return [machine for machine in clouds.running() if machine["name"].startswith(CONTROLLER)]


def installed(machine: Path) -> list[str]:
    """The wheels that SkyPilot has installed on a machine, from its disk."""
    return (machine / "upper/home/ubuntu/.sky/plugins/.installed_wheels").read_text().split()


def wheel_of(skypilot: SkyPilot) -> str:
    """The one that `doctor --fix` has built."""
    (wheel,) = (skypilot.home / ".sky/notus-wheels").iterdir()
    return wheel.name
