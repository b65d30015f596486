"""Preemption notices: the cloud says shortly before that it will take the machine away.

SkyPilot passes nothing on to a VM (skypilot-facts), so the supervisor asks the metadata server itself. A notice is a
chance, not a promise: the periodic saves are what a run can count on.
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
"""Unanswered questions in a row that are worth a warning."""

logger = logging.getLogger(__name__)


class Notice(NamedTuple):
    """The machine will be taken away."""

    source: str
    deadline: datetime | None
    """When, as far as it is known."""


class NoticeSource(Protocol):
    """Somebody who may know."""

    name: str

    def poll(self) -> Notice | None:
        """A notice, or None. Raises `OSError` where there is nobody to ask."""


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
        token = self._ask("/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        try:
            data = self._ask(
                "/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token.decode()}
            )
        except urllib.error.HTTPError as error:
            if error.code == 404:  # the usual answer: nothing is planned
                return None
            raise
        action = json.loads(data)
        return Notice(self.name, datetime.fromisoformat(action["time"]) if "time" in action else None)

    def _ask(self, path: str, *, method: str = "GET", headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(f"{self._base_url}{path}", method=method, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=CONNECT_S) as answer:  # noqa: S310
            data: bytes = answer.read()
        return data


SOURCES: Mapping[str, Callable[[], NoticeSource]] = {"gcp": GcpMetadata, "aws": AwsMetadata}
"""By the word that `trainer.config.clouds` has for them."""


class FileNotice:
    """A file that appears: for tests, and for whoever knows of a preemption before we do.

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
            deadline = None  # a notice without a time, or with one that we can't read, is a notice all the same
        return Notice(self.name, deadline)


class NoticePoller:
    """Asks every source once a second, in a thread, and calls `on_notice` once.

    Never gives a source up: the sources are those of the cloud that the machine is in, and a metadata server may be
    slow in the first seconds of a boot, or away for minutes.
    """

    def __init__(self, sources: Sequence[NoticeSource], on_notice: Callable[[Notice], None]) -> None:
        self._silent_polls = dict.fromkeys(sources, 0)
        self._on_notice = on_notice
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="notice", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def ask_all(self) -> Notice | None:
        """One round."""
        for source in self._silent_polls:
            try:
                notice = source.poll()
            except Exception as error:  # whatever one source says, the others are to be heard, and this one next time
                self._silent_polls[source] += 1
                if self._silent_polls[source] == SILENT_POLLS:
                    logger.warning("no preemption notice can be heard from %s just now: %r", source.name, error)
                continue
            self._silent_polls[source] = 0
            if notice is not None:
                return notice
        return None

    def _run(self) -> None:
        while not self._ended.wait(POLL_S):
            if (notice := self.ask_all()) is not None:
                self._on_notice(notice)
                return
