"""Tests of what only a GPU can show. `make gpu`; they skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.workload import SMALL, make_model, make_pairs
from tests.integration.conftest import Launcher


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """torch is imported only where the driver is: it costs the other tests seconds."""
    here = Path(__file__).parent
    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows=64, tokens=200)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """As in the integration tests, but it sees the GPU."""
    made = Launcher(tmp_path / "home")
    made.environment.pop("CUDA_VISIBLE_DEVICES")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        made.environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert not left, f"processes left behind: {left}"
