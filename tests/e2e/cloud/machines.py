"""Machines as Linux namespaces over one read-only root: own processes, mounts, network, name; an sshd as the first one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.e2e.cloud.world import Machine

BRIDGE = "br0"
GATEWAY = "10.77.0.1"
API_PORT = 8181
"""Of both clouds, at the gateway."""
URL = f"http://{GATEWAY}:{API_PORT}"
HOOK = Path(__file__).parents[1] / "sky_hook.py"
BOOT_TRIES = 400

INIT = r"""
set -e
NAME=$1; IP=$2; ROOT=$3; DIR=$4; GATEWAY=$5; URL=$6; HOOK=$7; HOLDS=$8; BROKEN=$9
hostname "$NAME"
mount --make-rprivate /
mount -t overlay overlay -o lowerdir="$ROOT",upperdir="$DIR/upper",workdir="$DIR/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys || true
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir -p dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o size=2g,mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run; mkdir -p run/sshd run/lock run/holds
mount --bind "$HOLDS" run/holds
echo "$NAME" > etc/hostname
printf '127.0.0.1 localhost\n%s %s\n%s metadata.google.internal\n' "$IP" "$NAME" "$GATEWAY" > etc/hosts
mkdir -p home/ubuntu/.ssh
cp "$DIR/authorized_keys" home/ubuntu/.ssh/authorized_keys
chown -R 1000:1000 home/ubuntu/.ssh; chmod 700 home/ubuntu/.ssh; chmod 600 home/ubuntu/.ssh/authorized_keys
# A jobs controller's own SkyPilot talks to the clouds too.
echo "$URL" > etc/loopback-clouds
if [ "$BROKEN" = 1 ]; then touch etc/broken-gpus; fi
for SITE in home/ubuntu/{skypilot-runtime,notus-venv}/lib/python3*/site-packages; do
  cp "$HOOK" "$SITE/sky_hook.py"; echo "import sky_hook" > "$SITE/sky_hook.pth"
done
ip link set lo up
for try in $(seq 200); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.05; done
ip addr add "$IP/24" dev eth0; ip link set eth0 up
exec chroot "$DIR/root" /usr/sbin/sshd -D -e
"""


class NamespaceMachines:
    """Real processes. Must run as root inside the clouds' own network namespace, where `BRIDGE` is."""

    def __init__(self, root: Path, folder: Path, holds: Path) -> None:
        self._root = root
        self._folder = folder
        self._holds = holds
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._inits: dict[str, int] = {}

    def boot(self, machine: Machine) -> None:
        folder = self._folder / machine.id
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        (folder / "authorized_keys").write_text(machine.public_key + "\n")
        with (folder / "console.log").open("wb") as console:
            process = subprocess.Popen(
                ["unshare", "--fork", "--pid", "--kill-child", "--mount", "--net", "--uts", "--ipc", "--mount-proc",
                 "bash", "-c", INIT, "init", f"m{machine.number}", machine.ip, str(self._root), str(folder), GATEWAY,
                 URL, str(HOOK), str(self._holds), str(int(machine.broken))],
                stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        self._processes[machine.id] = process
        init = self._inits[machine.id] = _child_of(process.pid)
        outside, inside = f"v{machine.number}", f"p{machine.number}"
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        _ip("link", "set", outside, "master", BRIDGE, "up")
        _ip("link", "set", inside, "netns", str(init))
        subprocess.run(["nsenter", "-t", str(init), "-n", "ip", "link", "set", inside, "name", "eth0"], check=True)
        for _ in range(BOOT_TRIES):
            try:
                socket.create_connection((machine.ip, 22), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"machine {machine.name} does not boot: see {folder}/console.log")

    def kill(self, machine: Machine) -> None:
        process, init = self._processes.pop(machine.id, None), self._inits.pop(machine.id, None)
        if init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
        if process is not None:
            process.wait()
        shutil.rmtree(self._folder / machine.id, ignore_errors=True)

    def partition(self, machine: Machine, *, cut: bool) -> None:
        _ip("link", "set", f"v{machine.number}", "down" if cut else "up")


def _child_of(pid: int) -> int:
    """The first process inside, once it is there."""
    for _ in range(500):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError("unshare started nothing")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
