"""The metadata servers of GCP and AWS, as small servers on loopback; and a notice that stops a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from checkpoints.events import read_events
from checkpoints.head import read_head
from checkpoints.restore import load_manifest
from checkpoints.run import open_run
from checkpoints.store import Store
from tests.integration.conftest import Launcher, assert_bit_exact, wait_for
from trainer.notice import AwsMetadata, GcpMetadata


class Metadata(ThreadingHTTPServer):
    """Both clouds' paths; `preempted` decides what it says."""

    preempted = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, *args: Any) -> None:
        pass

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200, b"token")

    def do_GET(self) -> None:
        if self.path == "/computeMetadata/v1/instance/preempted":
            ok = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if ok else 403, b"TRUE" if self.server.preempted else b"FALSE")
        elif self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401, b"")
        elif not self.server.preempted:
            self._answer(404, b"")
        else:
            self._answer(200, b'{"action": "terminate", "time": "2026-11-24T20:00:00Z"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_gcp(metadata: Metadata) -> None:
    source = GcpMetadata(metadata.url)
    assert source.poll() is None
    metadata.preempted = True
    notice = source.poll()
    assert notice is not None
    assert notice.deadline is not None
    assert timedelta(seconds=25) < notice.deadline - datetime.now(UTC) <= timedelta(seconds=30)


def test_aws(metadata: Metadata) -> None:
    source = AwsMetadata(metadata.url)
    assert source.poll() is None
    metadata.preempted = True
    assert source.poll() == ("aws", datetime(2026, 11, 24, 20, tzinfo=UTC))


def test_nobody_there() -> None:
    with pytest.raises(OSError, match="refused"):
        GcpMetadata("http://127.0.0.1:9").poll()


def test_a_notice_saves_in_time_and_the_run_goes_on(launcher: Launcher, reference: Store) -> None:
    """As on a VM: nobody but the notice stops the attempt, and it exits to be started again at once."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "noticed"))
    wait_for(lambda: launcher.progress_step("noticed") >= 2, "step 2")
    attempt = next((launcher.home / "scratch" / "noticed").glob("attempt-*"))
    (attempt / "notice").write_text(json.dumps({"seconds": 20}))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    store = open_run(launcher.bucket, "noticed")
    events = read_events(store)
    notices = [event for event in events if event.kind == "notice"]
    ended = [event.data["outcome"] for event in events if event.kind == "attempt_ended"]
    assert notices[0].data["source"] == "file"
    assert notices[0].data["deadline"]
    assert ended == ["preempted", "finished"]
    saved = [event for event in events if event.kind == "saved" and event.attempt == 1][-1]
    resumed = [event for event in events if event.kind == "resumed"][-1]
    assert resumed.data["step"] == saved.data["step"]
    assert_bit_exact(store, reference)


def test_a_deadline_too_near_leaves_the_last_commit(launcher: Launcher, tmp_path: Path) -> None:
    """A bucket so slow that nothing fits: the newest periodic save stays, and nothing half-written is left in HEAD."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "late"))
    wait_for(lambda: launcher.progress_step("late") >= 6, "step 6, after the first save")
    attempt = next((launcher.home / "scratch" / "late").glob("attempt-*"))
    (attempt / "notice").write_text(json.dumps({"seconds": 0.5}))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    store = open_run(launcher.bucket, "late")
    stops = [e for e in read_events(store) if e.kind == "saved" and e.data["reason"] == "stop"]
    assert stops == []
    head = read_head(store)
    assert head is not None
    assert load_manifest(store, head.commits[0]).reason == "final"
