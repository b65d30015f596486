"""Preemption notices: shortly before taking a machine away, the cloud announces it.

SkyPilot doesn't forward notices to a VM (skypilot-facts), so the supervisor queries the metadata server itself. A
notice is not guaranteed: a run can only rely on its periodic saves.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

GCP_URL = "http://metadata.google.internal"
AWS_URL = "http://169.254.169.254"
GCP_NOTICE_S = 30.0
"""Google's documented time between the notice and the end of a Spot VM."""
POLL_S = 1.0
CONNECT_S = 1.0
SILENT_POLLS = 5
"""Consecutive failed polls before a warning."""

logger = logging.getLogger(__name__)


class Notice(NamedTuple):
    """The machine will be taken away."""

    source: str
    deadline: datetime | None
    """When, if known."""


class NoticeSource(Protocol):
    """A source of notices."""

    name: str

    def poll(self) -> Notice | None:
        """A notice, or None. Raises `OSError` if the source does not respond."""


class GcpMetadata:
    """`instance/preempted` of Google's metadata server turns TRUE 30 s before a Spot VM is stopped."""

    name = "gcp"

    def __init__(self, base_url: str = GCP_URL) -> None:
        self._request = urllib.request.Request(  # noqa: S310  # a fixed http address of the machine's own network
            f"{base_url}/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
        )

    def poll(self) -> Notice | None:
        with urllib.request.urlopen(self._request, timeout=CONNECT_S) as answer:  # noqa: S310
            if answer.read().strip() != b"TRUE":
                return None
        return Notice(self.name, datetime.now(UTC) + timedelta(seconds=GCP_NOTICE_S))


class AwsMetadata:
    """`spot/instance-action` of the EC2 metadata service (IMDSv2) appears two minutes before."""

    name = "aws"

    def __init__(self, base_url: str = AWS_URL) -> None:
        self._base_url = base_url

    def poll(self) -> Notice | None:
        token = self._request("/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        try:
            data = self._request(
                "/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token.decode()}
            )
        except urllib.error.HTTPError as error:
            if error.code == 404:  # the usual response: nothing is planned
                return None
            raise
        action = json.loads(data)
        return Notice(self.name, datetime.fromisoformat(action["time"]) if "time" in action else None)

    def _request(self, path: str, *, method: str = "GET", headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(f"{self._base_url}{path}", method=method, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=CONNECT_S) as answer:  # noqa: S310
            data: bytes = answer.read()
        return data


SOURCES: Mapping[str, Callable[[], NoticeSource]] = {"gcp": GcpMetadata, "aws": AwsMetadata}
"""The sources by their name in `trainer.config.clouds`."""


class FileNotice:
    """A file that appears: for tests, and for tools that know of a preemption before we do.

    Its content may be JSON, `{"seconds": 30}`.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def poll(self) -> Notice | None:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        try:
            deadline = datetime.now(UTC) + timedelta(seconds=float(json.loads(text)["seconds"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            deadline = None  # a notice without a time, or with an unreadable one, is still a notice
        return Notice(self.name, deadline)


class NoticePoller:
    """Polls every source once per second, in a thread, and calls `on_notice` once.

    Never gives up on a source: they are those of the machine's own cloud, and a metadata server may be slow in the
    first seconds after boot, or unavailable for minutes.
    """

    def __init__(self, sources: Sequence[NoticeSource], on_notice: Callable[[Notice], None]) -> None:
        self._silent_polls = dict.fromkeys(sources, 0)
        self._on_notice = on_notice
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="notice", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def poll_all(self) -> Notice | None:
        """Poll each source once."""
        for source in self._silent_polls:
            try:
                notice = source.poll()
            except Exception as error:  # whatever one source raises, poll the others, and this one again next time
                self._silent_polls[source] += 1
                if self._silent_polls[source] == SILENT_POLLS:
                    logger.warning("can't query %s for preemption notices right now: %r", source.name, error)
                continue
            self._silent_polls[source] = 0
            if notice is not None:
                return notice
        return None

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            if (notice := self.poll_all()) is not None:
                self._on_notice(notice)
                return
