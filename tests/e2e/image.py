"""The root file system of the loopback clouds' machines: Debian with SkyPilot's runtime and the trainer's packages.

Built once into a cache folder and used read-only, below an overlay for each machine. It holds what a real VM would
download at its start, because the machines have no way out: SkyPilot's set-up and ours then find everything installed.
`python -m tests.e2e.image FOLDER` fills a cache folder by hand. Root and Linux only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.cloud.gcp_api import GCLOUD

REPOSITORY = Path(__file__).parents[2]
CATALOGS = REPOSITORY.parent / "shared/data/catalogs/v8"
USER = "ubuntu"
PACKAGES = (
    "openssh-server", "sudo", "python3", "python3-venv", "python3-pip", "python3-dev", "g++", "rsync", "curl",
    "ca-certificates", "procps", "psmisc", "iproute2", "lsof", "netcat-openbsd", "git", "less", "fuse3", "patch",
)  # fmt: skip
RUNTIME = ("setuptools<70", "click<8.2.0", "ray[default]==2.9.3", "pydantic-core==2.41.1")
"""What SkyPilot 0.14.1 installs into ~/skypilot-runtime of a machine, beside its own wheel (ran)."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
NVIDIA_SMI = "#!/bin/sh\necho 'name, memory.total [MiB], driver_version'\necho 'loopback, 0 MiB, 0'\n"
KEPT_BY = ("trainer/build_cache/ops_build_folder.py", "trainer/build_cache/deepspeed_ops.py")
"""What decides where compiled operators are found again."""
PIP_CONF = "[global]\nno-index = true\n[install]\nno-build-isolation = false\n"
"""pip reads this option backwards: false means that there is no isolation."""
UV_TOML = "offline = true\n"
"""uv then takes what is installed already, as for the plugin's wheel on a jobs controller."""

COMPILE = """
import os
from deepspeed.comm.torch import build_shm_op
from trainer.build_cache.ops_build_folder import KeptOperators, kept_root
from trainer.build_cache.deepspeed_ops import OpsCache, machine_key

assert build_shm_op()
kept = KeptOperators(kept_root(os.environ), machine_key())
OpsCache(None, None, None, kept).publish()
assert kept.find()
"""


class Image:
    """The cached root file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._stamp = folder / "stamp"

    def ready(self, wheel_hash: str) -> bool:
        """Is it there, and made from what is written here and from this wheel of SkyPilot's?"""
        return self._stamp.exists() and self._stamp.read_text() == _fingerprint(wheel_hash)

    def build(self, wheel: Path, wheel_hash: str) -> None:
        """Make it anew; takes some minutes. `wheel` is the one that SkyPilot sends to its machines, with its hash."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        _run("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", "bookworm",
             str(self.root), mirror())  # fmt: skip
        self._configure()
        with self._network():
            self._as_user("python3 -m pip install --quiet --user --break-system-packages uv")
            self._install_runtime(wheel, wheel_hash)
            self._install_controller()
            self._as_user("~/skypilot-runtime/bin/python -m compileall -q ~/skypilot-runtime/lib || true")
            self._install_trainer()
        (self.root / f"home/{USER}/.config/pip").mkdir(parents=True, exist_ok=True)
        (self.root / f"home/{USER}/.config/pip/pip.conf").write_text(PIP_CONF)
        (self.root / f"home/{USER}/.config/uv").mkdir(exist_ok=True)
        (self.root / f"home/{USER}/.config/uv/uv.toml").write_text(UV_TOML)
        self._as_user("rm -rf ~/.cache/uv ~/.cache/pip")
        _run("chown", "-R", "1000:1000", str(self.root / f"home/{USER}"))
        self._stamp.write_text(_fingerprint(wheel_hash))

    def _configure(self) -> None:
        root = self.root
        _run("chroot", str(root), "useradd", "-m", "-u", "1000", "-s", "/bin/bash", USER)
        (root / "etc/sudoers.d/users").write_text(f"{USER} ALL=(ALL) NOPASSWD:ALL\ngcpuser ALL=(ALL) NOPASSWD:ALL\n")
        # GCP's machines are entered as another user; here it is the same one under another name.
        with (root / "etc/passwd").open("a") as passwd:
            passwd.write(f"gcpuser:x:1000:1000::/home/{USER}:/bin/bash\n")
        with (root / "etc/shadow").open("a") as shadow:
            shadow.write("gcpuser:*:19000:0:99999:7:::\n")
        _run("chroot", str(root), "ssh-keygen", "-A")
        _script(root / "usr/bin/systemctl", "#!/bin/sh\nexit 0\n")
        _script(root / "usr/bin/nvidia-smi", NVIDIA_SMI)
        _script(root / "usr/bin/gcloud", GCLOUD)
        (root / "etc/apt/apt.conf.d/20auto-upgrades").touch()

    def _install_runtime(self, wheel: Path, wheel_hash: str) -> None:
        shutil.copy(wheel, self.root / "var/tmp")
        pip = "VIRTUAL_ENV=~/skypilot-runtime uv pip install --quiet"
        self._as_user("uv venv --quiet --seed ~/skypilot-runtime --python /usr/bin/python3")
        self._as_user(f"{pip} {shlex.join(RUNTIME)}")
        self._as_user(f"{pip} '/var/tmp/{wheel.name}[lambda,gcp,remote]' {shlex.join(RUNTIME[:3])}")
        self._as_user(
            "uv venv --quiet --seed --relocatable --system-site-packages --python /usr/bin/python3 ~/sky-user-env"
        )
        self._as_user(f"mkdir -p ~/.sky/wheels && echo {wheel_hash} > ~/.sky/wheels/current_sky_wheel_hash")
        self._as_user("~/skypilot-runtime/bin/python -c 'from sky.skylet.ray_patches import patch; patch()'")

    def _install_controller(self) -> None:
        """What a jobs controller gets from outside: what our wheel depends on, and the catalog that SkyPilot never sends."""
        wanted = shlex.join(PROJECT["project"]["dependencies"])
        self._as_user(f"VIRTUAL_ENV=~/skypilot-runtime uv pip install --quiet {wanted}")
        self._as_user("mkdir -p ~/.sky/catalogs/v8")
        shutil.copytree(CATALOGS / "common", self.root / f"home/{USER}/.sky/catalogs/v8/common")

    def _install_trainer(self) -> None:
        """Everything that the task's set-up asks for, but our own package."""
        wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["trainer"]
        wanted += PROJECT["build-system"]["requires"]
        shutil.copy(REPOSITORY / "constraints.txt", self.root / "var/tmp/constraints.txt")
        torch = next(
            line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line.startswith("torch==")
        )
        self._as_user("uv venv --quiet --python /usr/bin/python3 --seed ~/notus-venv")
        pip = "~/notus-venv/bin/pip --disable-pip-version-check install --quiet"
        self._as_user(f"{pip} --upgrade pip && {pip} {torch}")
        self._as_user(f"{pip} -c /var/tmp/constraints.txt {shlex.join(wanted)}")
        self._compile_operators()

    def _compile_operators(self) -> None:
        """On a CPU DeepSpeed compiles its collectives on first use: minutes of each machine's start here. They are kept
        where an attempt looks for what an earlier one has compiled on its machine."""
        source = self.root / "var/tmp/source"
        for package in ("checkpoints", "trainer"):
            shutil.copytree(REPOSITORY / package, source / package)
        self._as_user(
            f"DS_ACCELERATOR=cpu PATH=~/notus-venv/bin:$PATH PYTHONPATH=/var/tmp/source python -c {shlex.quote(COMPILE)}"
        )
        shutil.rmtree(source)

    def _as_user(self, script: str) -> None:
        passed = [f"{name}={value}" for name, value in os.environ.items() if _for_downloads(name)]
        home = f"/home/{USER}"
        _run("chroot", "--userspec=1000:1000", str(self.root), "env", "-i", f"HOME={home}", *passed,
             f"PATH={home}/.local/bin:/usr/bin:/bin", "UV_LINK_MODE=copy", "bash", "-ec", f"cd; {script}")  # fmt: skip

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        """This machine's way to the registries, for the time of the build."""
        for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt", "etc/pip.conf"):
            if Path("/", name).exists():
                shutil.copy(Path("/", name), self.root / name)
        shutil.copytree("/etc/xdg/pip", self.root / "etc/xdg/pip", dirs_exist_ok=True) if Path(
            "/etc/xdg/pip"
        ).is_dir() else None
        mounts = [name for name in ("proc", "dev", "opt") if Path("/", name).is_dir()]
        for name in mounts:
            _run("mount", "--bind", f"/{name}", str(self.root / name))
        try:
            yield
        finally:
            for name in mounts:
                _run("umount", str(self.root / name))
            shutil.rmtree(self.root / "etc/xdg/pip", ignore_errors=True)
            (self.root / "etc/pip.conf").unlink(missing_ok=True)


def _fingerprint(wheel_hash: str) -> str:
    files = [Path(__file__), *(REPOSITORY / name for name in ("constraints.txt", "pyproject.toml", *KEPT_BY))]
    parts = [*(file.read_bytes() for file in files), wheel_hash.encode(), _cpu()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _cpu() -> bytes:
    """What the compiler made DeepSpeed's operator for: another CPU may not have these instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode()


def _for_downloads(name: str) -> bool:
    return name.startswith(("PIP_", "SSL_CERT_", "CURL_CA", "REQUESTS_CA", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"))


def mirror() -> str:
    """The Debian mirror that this machine uses, or ''."""
    sources = [*Path("/etc/apt").glob("sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    for path in sources:
        if path.exists() and (match := re.search(r"(?m)^(?:URIs:|deb\s+(?:\[.*?\]\s+)?)\s*(\S+)", path.read_text())):
            return match[1]
    return ""


def build_tools(folder: Path) -> None:
    """What pip needs from the index to build our wheel, in a folder: there is no index in the clouds' network."""
    wanted = PROJECT["build-system"]["requires"]
    if not list(folder.glob("*.whl")):
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted)


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def sky_wheel(home: Path) -> tuple[Path, str]:
    """The wheel that SkyPilot builds of itself for its machines, and its hash; made in a home of its own."""
    script = "from sky.backends import wheel_utils; print(*wheel_utils.build_sky_wheel())"
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    folder, wheel_hash = done.stdout.split()[-2:]
    # A reinstalled SkyPilot builds the same wheel, and leaves the old file, which is then older than the package: on
    # the loopback clouds SkyPilot would build it again at each launch, where there is no network to do it with.
    (home / ".sky/wheels" / wheel_hash).touch()
    return next(Path(folder).glob("*.whl")), wheel_hash


if __name__ == "__main__":
    cache = Path(sys.argv[1])
    image = Image(cache / "image")
    wheel, wheel_hash = sky_wheel(cache / "home")
    if not image.ready(wheel_hash):
        image.build(wheel, wheel_hash)
