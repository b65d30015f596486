"""The metadata servers of GCP and AWS, as small servers on loopback; and a notice that stops a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_manifest
from checkpoints.run_log.event_log import read_events
from checkpoints.run_log.run_record import open_run
from checkpoints.storage.base import Store
from tests.integration.conftest import Launcher, assert_bit_exact, wait_for
from tests.support.loopback import LoopbackServer, QuietHandler, serving
from trainer.runtime.attempt_dir import Progress
from trainer.runtime.preemption_notice import AwsMetadata, GcpMetadata


class Metadata(LoopbackServer):
    """Both clouds' paths; `preempted` decides what it says."""

    preempted = False

    def __init__(self) -> None:
        super().__init__(_Handler)


class _Handler(QuietHandler):
    server: Metadata

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
    with serving(Metadata()) as server:
        yield server


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


def run_with_notice(launcher: Launcher, moment: Callable[[Progress], bool], seconds: float) -> Store:
    """Run tiny-dpo to its end, with a notice of so many seconds at a moment of its first attempt."""
    process = launcher.start(*launcher.local("tiny-dpo", "--name", "noticed"))
    wait_for(lambda: moment(launcher.progress("noticed")), "the moment of the notice")
    launcher.announce_preemption("noticed", seconds)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return open_run(launcher.bucket, "noticed")


def test_a_notice_saves_in_time_and_the_run_goes_on(launcher: Launcher, reference: Store) -> None:
    """As on a VM: nobody but the notice stops the attempt, and it exits to be started again at once."""
    store = run_with_notice(launcher, lambda progress: progress.step >= 2, seconds=20)
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


@pytest.mark.slow
def test_a_deadline_too_near_leaves_the_last_commit(launcher: Launcher) -> None:
    """A bucket so slow that nothing fits: the newest periodic save stays, and nothing half-written is left in HEAD."""
    store = run_with_notice(launcher, lambda progress: progress.step >= 6, seconds=0.5)  # after the first save
    stops = [e for e in read_events(store) if e.kind == "saved" and e.data["reason"] == "stop"]
    assert stops == []
    head = read_head(store)
    assert head is not None
    assert load_manifest(store, head.commits[0]).reason == "final"


def test_a_notice_before_the_first_step_ends_the_attempt_at_once(launcher: Launcher) -> None:
    """Nobody waits for minutes of tokenising and loading: there is nothing to save."""
    store = run_with_notice(launcher, lambda progress: progress.phase == "importing", seconds=20)
    events = read_events(store)
    ended = [(event.data["outcome"], event.data["step"]) for event in events if event.kind == "attempt_ended"]
    assert ended == [("preempted", 0), ("finished", 24)]
    assert [event.attempt for event in events if event.kind == "training"] == [2]
