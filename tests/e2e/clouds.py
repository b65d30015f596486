"""The loopback clouds: a network namespace without a way out, its servers, and a SkyPilot that uses them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.e2e.cloud.machines import BRIDGE, GATEWAY, URL
from tests.e2e.image import REPOSITORY, Image
from tests.e2e.skypilot import SkyPilot

NAMESPACE = "notus-e2e"
SKY_PORT = 46999
CONTROL = f"{URL}/control"
CLONE_NEWNET = 0x40000000


class Clouds:
    """Both clouds, running."""

    def __init__(self, folder: Path, image: Image, cache: Path) -> None:
        self.folder = folder
        self.holds = folder / "holds"
        self.skypilot = SkyPilot(folder / "home", SKY_PORT, cache)
        self.beside: tuple[str, ...] = ()
        """How the names of machines begin that are a later scenario's."""
        self._image = image
        self._servers: list[subprocess.Popen[bytes]] = []
        self._namespaces_before = _pid_namespaces()

    # --- set-up -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Cloud server, SkyPilot's home."""
        machines = self.folder / "machines"
        machines.mkdir(parents=True)
        self.holds.mkdir()
        self.holds.chmod(0o777)  # the trainer isn't root
        arguments = map(str, (self._image.root, machines, self.holds))
        self.serve("-m", "tests.e2e.cloud.server", *arguments, log="clouds.log")
        self._wait_for_server()
        self.skypilot.make_home()

    def stop(self) -> None:
        """End everything that was started, machines first."""
        self.skypilot.stop()
        for server in reversed(self._servers):
            server.terminate()
            server.wait(30)

    def serve(self, *arguments: str, log: str) -> None:
        """Start a Python server."""
        with (self.folder / log).open("ab") as output:
            command = [sys.executable, *arguments]
            self._servers.append(subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY))

    def _wait_for_server(self) -> None:
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.state()
                return
            time.sleep(0.1)
        raise RuntimeError(f"the clouds don't start: see {self.folder}/clouds.log")

    # --- use --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Machines and events of both clouds."""
        with urllib.request.urlopen(f"{CONTROL}/state", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def running(self) -> list[dict[str, Any]]:
        """The machines that are there now."""
        return [machine for machine in self.state()["machines"] if machine["ended_at"] is None]

    def running_here(self) -> list[dict[str, Any]]:
        """Without those of a scenario that has begun beside this one."""
        return [machine for machine in self.running() if not machine["name"].startswith(self.beside)]

    def renew(self) -> None:
        """Everything is to be had again, and machines that their cloud had lost are gone."""
        self.control("capacity")
        self.control("quota")
        self.control("weather")
        self.control("bury")

    def clear(self) -> None:
        """No machine is left, whatever a test has left behind."""
        if not self._emptied(60):  # SkyPilot takes a machine down after it has said that the job is done
            self.skypilot.sky("jobs", "cancel", "-a", "-y")
            if not self._emptied(120):
                raise AssertionError(f"leaked machines: {self.running_here()}")

    def _emptied(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.running_here():
            if time.monotonic() > deadline:
                return False
            time.sleep(1)
        return True

    def machine_leaks(self) -> list[str]:
        """What is left of machines that are gone: processes (and with them private mounts), links, disks."""
        return self._traces_without({machine["id"]: machine["number"] for machine in self.running()})

    def _traces_without(self, living: dict[str, int]) -> list[str]:
        links = {name for _, name in socket.if_nameindex() if re.fullmatch(r"[vp]\d+", name)}
        inside = [
            f"{pid} in {namespace}"
            for namespace, pid in _pid_namespaces().items()
            if namespace not in self._namespaces_before and not _has_mounts_of(pid, living)
        ]
        disks = {path.name for path in (self.folder / "machines").iterdir()}
        return [
            *(links - {f"{end}{number}" for number in living.values() for end in "vp"}),
            *inside,
            *(disks - {*living}),
        ]

    def leaks(self) -> list[str]:
        """The same, and SkyPilot's processes and mounts of ours. Empty after `clear` and `stop`."""
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.folder) in line]
        processes = [f"{process.pid} {process.name()}" for process in self.skypilot.processes()]
        return [*mounts, *processes, *self._traces_without({})]

    def control(self, what: str, **body: Any) -> None:
        """capacity, shortage, quota, weather, preempt, partition, lose, find, bury."""
        urllib.request.urlopen(f"{CONTROL}/{what}", json.dumps(body).encode(), timeout=30).close()


def _pid_namespaces() -> dict[str, str]:
    """Each pid namespace that is in use, and a process in it."""
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found[str((process / "ns/pid").readlink())] = process.name
    return found


def _has_mounts_of(pid: str, machines: Iterable[str]) -> bool:
    """Is this a process of one of these machines, or just gone?"""
    try:
        mounts = Path("/proc", pid, "mountinfo").read_text()
    except OSError:
        return True
    return any(machine in mounts for machine in machines)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Put this thread, and all processes and threads that it starts, into a network of their own, with a bridge."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    _run("ip", "netns", "add", NAMESPACE)
    try:
        _enter(os.open(f"/run/netns/{NAMESPACE}", os.O_RDONLY))
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        yield
    finally:
        _enter(before)
        _run("ip", "netns", "del", NAMESPACE)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace)


@contextlib.contextmanager
def running_clouds(folder: Path, image: Image, cache: Path) -> Iterator[Clouds]:
    """Started, and stopped whatever happens."""
    clouds = Clouds(folder, image, cache)
    try:
        clouds.start()
        yield clouds
    finally:
        clouds.stop()
