"""The loopback clouds for a session of scenarios. `make e2e` runs them; a plain pytest leaves them out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from checkpoints.storage.base import Store
from tests.e2e.cloud.machines import GATEWAY
from tests.e2e.clouds import Clouds, own_network, running_clouds
from tests.e2e.figures import MEASURED, report
from tests.e2e.gate import Gate, gated
from tests.e2e.image import Image, build_tools, mirror, sky_wheel
from tests.e2e.remote import Remote, begun
from tests.e2e.runs import ENDING, check_endings
from tests.integration.conftest import Launcher, undisturbed, wait_for
from tests.support.seaweed import S3Server, seaweed

TOOLS = ("ip", "unshare", "nsenter", "mmdebstrap", "ssh", "rsync", "nc", "openssl", "ssh-keygen")
PACKAGES = "mmdebstrap openssh-server rsync netcat-openbsd iproute2 openssl"
CACHE = Path(os.environ.get("NOTUS_E2E_CACHE") or Path.home() / ".cache/notus-e2e")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, also where a test failed."""
    if MEASURED:
        terminalreporter.write_line(report())


def _missing() -> str:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "the loopback clouds need root on Linux: their machines are namespaces"
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"missing: {', '.join(tools)} (Debian: apt-get install {PACKAGES})"
    if not mirror():
        return "this machine has no Debian mirror in /etc/apt to make the machines' root from"
    probe = ["unshare", "--fork", "--pid", "--mount", "--net", "--uts", "--ipc", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"this machine may not make namespaces: {done.stderr.strip()}" if done.returncode else ""


@pytest.fixture(scope="session")
def image() -> Image:
    """Built once, a few minutes; then kept in the cache folder."""
    if reason := _missing():
        pytest.skip(reason)
    made = Image(CACHE / "image")
    # Asked anew each time: a SkyPilot that was installed since makes another one, which the machines must have too.
    wheel, wheel_hash = sky_wheel(CACHE / "home")
    if not made.ready(wheel_hash):
        made.build(wheel, wheel_hash)
    build_tools(CACHE / "build-tools")
    return made


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Future[Store]]:
    """The uninterrupted run, beside the rest of the set-up: in a thread that stays out of the clouds' network."""
    launcher = Launcher(tmp_path_factory.mktemp("reference"))
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(undisturbed, launcher)


@pytest.fixture(scope="session")
def reference(training: Future[Store]) -> Store:
    """To compare with."""
    return training.result()


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory, image: Image, training: Future[Store]) -> Iterator[S3Server]:
    """From here on this process is in the clouds' network. SeaweedFS is its object storage."""
    with own_network(), seaweed(tmp_path_factory.mktemp("weed"), GATEWAY) as server:
        server.client().create_bucket(Bucket="runs")
        for name, value in server.environment().items():
            os.environ[name] = value
        yield server


@pytest.fixture(scope="session")
def gate(bucket: S3Server) -> Iterator[Gate]:
    """A way to the bucket that can be closed to this machine."""
    with gated(bucket) as made:
        yield made


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory, image: Image, bucket: S3Server) -> Iterator[Clouds]:
    """Lambda, GCP, and a SkyPilot that knows both."""
    with running_clouds(tmp_path_factory.mktemp("clouds"), image, CACHE) as made:
        made.skypilot.run("notus-launch", "doctor", "--fix")
        made.skypilot.start()
        made.skypilot.sky("check", "gcp", "lambda")
        yield made
        while ENDING:
            check_endings([*ENDING])
        made.clear()
    assert made.leaks() == []


@pytest.fixture(scope="session")
def remote(clouds: Clouds, bucket: S3Server, training: Future[Store]) -> Iterator[Remote]:
    """The longest scenario goes on beside the session's first two."""
    with begun(Remote(clouds, bucket, CACHE, training)) as one:
        yield one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The one that goes on beside others is waited for after them."""
    longest = [item for item in items if _needs_remote(item)]
    items[:] = [item for item in items if item not in longest]
    items[2:2] = longest


def _needs_remote(item: pytest.Item) -> bool:
    return "remote" in getattr(item, "fixturenames", ())


@pytest.fixture(autouse=True)
def plenty(request: pytest.FixtureRequest, clouds: Clouds) -> Iterator[None]:
    """After each scenario, failed ones too: everything is to be had again, and no machine is left.

    A run that is done leaves its machine to SkyPilot, which notices within a quarter of a minute and takes it down. The
    next scenario begins meanwhile, and at its end that has to be over; so has what a scenario put off with `later`.
    """
    if any(_needs_remote(item) for item in request.session.items):
        request.getfixturevalue("remote")
    began_at, earlier, failed = time.time(), [*ENDING], request.session.testsfailed
    yield
    clouds.renew()
    check_endings(earlier)
    if request.session.testsfailed > failed:
        ENDING.clear()
        clouds.clear()
    old = "the end of the machines of the scenarios before"
    wait_for(lambda: not [one for one in clouds.running_here() if one["started_at"] < began_at], old, timeout_s=120)
    wait_for(lambda: clouds.machine_leaks() == [], "the last trace of the machines", timeout_s=20)
