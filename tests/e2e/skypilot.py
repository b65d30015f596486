"""A SkyPilot that uses the loopback clouds: a home folder, an API server of its own, and the commands.

Nothing of the user's own SkyPilot is touched.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil

from tests.e2e.cloud.gcp_api import ACCOUNT, GCLOUD, PROJECT
from tests.e2e.cloud.lambda_api import KEY
from tests.e2e.cloud.machines import URL
from tests.e2e.image import CATALOGS, REPOSITORY
from tests.integration.conftest import wait_for


class SkyPilot:
    """`cache` has the wheel that SkyPilot sends to its machines, and what builds ours; neither can be had here."""

    def __init__(self, home: Path, port: int, cache: Path) -> None:
        self.home = home
        self._port = port
        self._cache = cache

    def make_home(self) -> None:
        """Catalogs, credentials, the hook, and no configuration."""
        sky = self.home / ".sky"
        shutil.copytree(self._cache / "home/.sky/wheels", sky / "wheels")
        shutil.copytree(CATALOGS, sky / "catalogs/v8")
        keys = self.home / ".lambda_cloud/lambda_keys"
        keys.parent.mkdir(exist_ok=True)
        keys.write_text(f"api_key = {KEY}\n")
        account = self.home / ".config/gcloud/account.json"
        account.parent.mkdir(parents=True, exist_ok=True)
        account.write_text(json.dumps(self._service_account()))
        gcloud = self.home / "bin/gcloud"
        gcloud.parent.mkdir(exist_ok=True)
        gcloud.write_text(GCLOUD)
        gcloud.chmod(0o755)
        hook = self.home / "hook"
        hook.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "tests/e2e/sky_hook.py", hook / "sitecustomize.py")

    def _service_account(self) -> dict[str, str]:
        key = self.home / "account.pem"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": key.read_text(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": f"{URL}/token",
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of SkyPilot and of our command line."""
        return {
            "HOME": str(self.home),
            "PATH": f"{self.home}/bin:{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": f"{self.home}/hook:{REPOSITORY}",
            "LOOPBACK_CLOUDS": URL,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.home / ".config/gcloud/account.json"),
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self._port),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self._cache / "build-tools"),
            "LANG": "C.UTF-8",
            "USER": "root",
        }

    def run(self, *command: str, timeout_s: float = 600, answer: str = "") -> str:
        """Run a command with the clouds' environment, and what a user types; returns what it printed."""
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=timeout_s, check=False, cwd=REPOSITORY, input=answer,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def sky(self, *arguments: str, answer: str = "") -> str:
        """The `sky` command."""
        return self.run("sky", *arguments, timeout_s=900, answer=answer)

    def start(self) -> None:
        """Start its server. SkyPilot waits a minute for it; on a loaded machine it takes longer, and starts all the same."""
        try:
            self.sky("api", "start")
        except RuntimeError as error:
            if "Failed to start SkyPilot API server" not in str(error):
                raise
            wait_for(self._answers, "SkyPilot's API server")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """End its server and everything that it has started."""
        with contextlib.suppress(RuntimeError):
            self.sky("api", "stop")
        left = self.processes()  # its controllers are daemons, and start the server again for an unfinished job
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)

    def processes(self) -> list[psutil.Process]:
        """Every process that has this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.home) or self._has_files_of(process):
                    found.append(process)
        return found

    def _has_files_of(self, process: psutil.Process) -> bool:
        """SkyPilot writes the titles of its executors over their environment."""
        titled = "".join(process.cmdline()).startswith("SkyPilot:")
        return titled and any(file.path.startswith(f"{self.home}/") for file in process.open_files())
