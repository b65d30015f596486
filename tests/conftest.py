"""Fixtures for all tests. Unit tests get no network and no real sleeping (see tests/unit/conftest.py)."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from checkpoints.storage.base import Store
from tests.support.seaweed import S3Server, seaweed

# Minutes of root's work, see tests/e2e/conftest.py: only where they are asked for.
collect_ignore = [] if os.environ.get("NOTUS_E2E") else ["e2e"]

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
for name in ("NOTUS_BUCKET", "NOTUS_RUN", "NOTUS_SCRATCH", "NOTUS_RECIPE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the session, with a bucket `notus-test`."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        server.client().create_bucket(Bucket="notus-test")
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with this process's environment pointing to it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An uninterrupted run of tiny-dpo, to compare with."""
    from tests.integration.conftest import Launcher, undisturbed  # the unit tests need none of it

    return undisturbed(Launcher(tmp_path_factory.mktemp("reference")))


@pytest.fixture
def seed() -> int:
    """A new one each time; pytest prints it when the test fails."""
    value = random.SystemRandom().randrange(10**6)
    print(f"seed of the random steps: {value}")  # noqa: T201
    return value


@pytest.fixture
def shared() -> Path:
    """The folder with real data beside the checkout; skips where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with the real preference data is not here")
    return folder
