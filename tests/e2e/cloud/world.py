"""The state of both clouds: what there is, what it may do, and what happened. No I/O but through `Machines`."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

State = Literal["booting", "running", "stopping", "terminated"]
NOTICE_S = 30.0
"""Between a notice and the end of a GCP spot machine."""
STOPPING_S = 3.0
"""For so long a preempted machine is still listed, as STOPPING; SkyPilot asks Google to delete it then."""


@dataclass
class Machine:
    """One machine of one cloud."""

    id: str
    name: str
    cloud: str
    place: str
    """Lambda: region. GCP: zone."""
    kind: str
    """Lambda: instance type. GCP: SPOT or STANDARD."""
    ip: str
    public_key: str
    number: int
    state: State = "booting"
    preempted: bool = False
    """The metadata server says so."""
    broken: bool = False
    """Its GPUs don't work: the preflight finds none."""
    started_at: float = 0.0
    ended_at: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Machines(Protocol):
    """How machines come to be."""

    def boot(self, machine: Machine) -> None:
        """Start it; returns when it answers on its SSH port."""

    def kill(self, machine: Machine) -> None:
        """Every process of it dies at once, and its disk is gone."""

    def partition(self, machine: Machine, *, cut: bool) -> None:
        """Take its network away, or give it back."""


class Refused(Exception):
    """A cloud's reason not to start a machine, or not to end one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class World:
    """Both clouds. Thread-safe."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self.boot_s = 0.0
        """How long a machine takes before it begins to boot."""
        self.throttled = 0
        """So many of Lambda's next requests are over its rate limit."""
        self.broken: list[str] = []
        """How names begin: the next machine of such a name comes with GPUs that don't work."""
        self.kept: list[str] = []
        """The same, of requests to end a machine, which fail."""
        self._numbers = itertools.count(10)
        self.lock = threading.RLock()
        self.alive: dict[str, Machine] = {}
        self.gone: list[Machine] = []
        self.keys: dict[str, str] = {}
        self.capacity: dict[str, int] = {}
        """`place/kind` or `*/kind` -> how many more may start; what isn't named may always."""
        self.quotas: dict[str, str] = {}
        """`place/kind` or `*/kind` -> the cloud's message; such a request is over quota."""
        self.undead: list[Machine] = []
        """Forgotten by their cloud, but still running: see `lose`."""
        self.events: list[dict[str, Any]] = []

    def note(self, kind: str, **data: Any) -> None:
        with self.lock:
            self.events.append({"time": time.time(), "kind": kind, **data})

    def start(self, cloud: str, name: str, place: str, kind: str, public_key: str, **details: Any) -> Machine:
        """Start a machine in a thread. Raises `Refused`."""
        with self.lock:
            over = [self.quotas[key] for key in (f"{place}/{kind}", f"*/{kind}") if key in self.quotas]
            if over:
                self.note("quota", name=name, place=place, machine_kind=kind)
                raise Refused("quota", over[0])
            if self.room(place, kind) <= 0:
                self.note("stock-out", name=name, place=place, machine_kind=kind)
                raise Refused("capacity", f"no capacity for {kind} in {place}")
            self._take(place, kind, 1)
            number = next(self._numbers)
            machine = Machine(
                id=uuid.uuid4().hex, name=name, cloud=cloud, place=place, kind=kind, ip=f"10.77.0.{number}",
                public_key=public_key, number=number, started_at=time.time(), details=details,
                broken=_is_next(name, self.broken),
            )  # fmt: skip
            self.alive[machine.id] = machine
            self.note("launch", id=machine.id, name=name, place=place, machine_kind=kind)
        threading.Thread(target=self._boot, args=(machine,), daemon=True).start()
        return machine

    def room(self, place: str, kind: str) -> int:
        """How many more machines of a kind may start there."""
        return self.capacity.get(f"{place}/{kind}", self.capacity.get(f"*/{kind}", 1))

    def _take(self, place: str, kind: str, count: int) -> None:
        if f"{place}/{kind}" in self.capacity:
            self.capacity[f"{place}/{kind}"] -= count

    def _boot(self, machine: Machine) -> None:
        time.sleep(self.boot_s)
        self._machines.boot(machine)
        with self.lock:
            if machine.state == "booting":
                machine.state = "running"
                self.note("running", id=machine.id)

    def release(self, machine: Machine) -> None:
        """End it as its user wishes. Raises `Refused`."""
        with self.lock:
            if _is_next(machine.name, self.kept):
                self.note("kept", id=machine.id, name=machine.name, place=machine.place)
                raise Refused("forbidden", f"the machine {machine.name} can't be ended now")
        self.end(machine, "terminated")

    def end(self, machine: Machine, why: str) -> None:
        """Its processes end now. A preempted machine is listed for some seconds more."""
        with self.lock:
            if machine.ended_at is not None:
                return
            machine.state, machine.ended_at = "stopping", time.time()
            if why != "preempted":
                self._take(machine.place, machine.kind, -1)
            self.note(why, id=machine.id, name=machine.name, place=machine.place)
        self._machines.kill(machine)
        if why == "preempted":
            timer = threading.Timer(STOPPING_S, self._forget, (machine,))
            timer.daemon = True
            timer.start()
        else:
            self._forget(machine)

    def _forget(self, machine: Machine) -> None:
        with self.lock:
            machine.state = "terminated"
            if self.alive.pop(machine.id, None) is not None:
                self.gone.append(machine)

    def is_throttled(self) -> bool:
        """Is this request one too many? Counts it."""
        with self.lock:
            if self.throttled <= 0:
                return False
            self.throttled -= 1
            return True

    def preempt(self, machine: Machine, *, notice: bool) -> None:
        """Take a machine away: at once, or after a notice of `NOTICE_S`."""
        if not notice:
            self.end(machine, "preempted")
            return
        machine.preempted = True
        self.note("notice", id=machine.id)
        timer = threading.Timer(NOTICE_S, self.end, (machine, "preempted"))
        timer.daemon = True
        timer.start()

    def partition(self, machine: Machine, *, cut: bool) -> None:
        self.note("partition" if cut else "healed", id=machine.id)
        self._machines.partition(machine, cut=cut)

    def lose(self, machine: Machine) -> None:
        """The network is cut and the cloud forgets the machine, but it runs on: `find` gives it its network back."""
        self.partition(machine, cut=True)
        with self.lock:
            self.alive.pop(machine.id)
            machine.state, machine.ended_at = "terminated", time.time()
            self.gone.append(machine)
            self.undead.append(machine)

    def find(self) -> None:
        """Every lost machine can talk again."""
        for machine in self.undead:
            self.partition(machine, cut=False)

    def bury(self) -> None:
        """End the lost machines for good."""
        while self.undead:
            self._machines.kill(self.undead.pop())

    def of(self, cloud: str) -> list[Machine]:
        with self.lock:
            return [machine for machine in self.alive.values() if machine.cloud == cloud]

    def close(self) -> None:
        for machine in list(self.alive.values()):
            self.end(machine, "closed")
        self.bury()


def _is_next(name: str, beginnings: list[str]) -> bool:
    """Is this one meant? Then the next one isn't, unless it is listed again."""
    found = next((one for one in beginnings if name.startswith(one)), None)
    if found is not None:
        beginnings.remove(found)
    return found is not None
