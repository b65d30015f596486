"""A real Azure Blob server on loopback: Azurite, Microsoft's emulator, which `make setup` installs where npm is."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.paths import ROOT
from trainer.runtime.process_tree import die_with_parent

PROGRAM = ROOT / ".venv/azurite/node_modules/.bin/azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Those that every Azurite has, as its documentation says: no secret."""
START_S = 60.0


@contextlib.contextmanager
def azurite(folder: Path, container: str) -> Iterator[dict[str, str]]:
    """Run it with its data in `folder` and one container; yields what a process needs to use it."""
    if not PROGRAM.is_file():
        pytest.skip("Azurite is not installed: make setup installs it where npm is")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--skipApiVersionCheck", "--disableTelemetry"],
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )
    try:
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        _until_up(server, port, folder / "log")
        _create_container(endpoint, container)
        yield {"AZURE_STORAGE_ENDPOINT": endpoint, "AZURE_STORAGE_ACCOUNT_KEY": KEY}
    finally:
        server.terminate()
        server.wait(30)


def _until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)


def _create_container(endpoint: str, name: str) -> None:
    """By the REST interface and its SharedKey signature (learn.microsoft.com, "Authorize with Shared Key")."""
    parts = urlsplit(endpoint)
    path = f"{parts.path}/{name}"
    date, version = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "2021-12-02"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}{path}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)).decode()
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    connection.request("PUT", f"{path}?restype=container", headers={**headers, "Content-Length": "0"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 201, (answer.status, text)
