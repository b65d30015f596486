"""Unit tests: no network, no waiting."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from launcher.catalog.offers import Catalog, find_catalog


@pytest.fixture(autouse=True)
def _no_network_no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a unit test must not use the network")

    def no_sleep(seconds: float) -> None:
        raise AssertionError("a unit test must not sleep")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", no_sleep)
    monkeypatch.setattr("checkpoints.records.verified_reads.PAUSES_S", ())


@pytest.fixture
def snapshot(tmp_path: Path) -> Catalog:
    """The shipped price snapshot: a home without a catalog of its own."""
    return find_catalog({"HOME": str(tmp_path)})
