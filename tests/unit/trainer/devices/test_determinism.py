"""What is set on a GPU before the first kernel runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from trainer.devices.determinism import CUDA_ENVIRONMENT, make_deterministic


@pytest.fixture
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    outside = {name: value for name, value in os.environ.items() if name not in CUDA_ENVIRONMENT}
    monkeypatch.setattr(os, "environ", outside)
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    yield
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("_as_before")
def test_everything_is_set_and_told_and_a_value_of_the_users_own_is_kept() -> None:
    os.environ["NCCL_ALGO"] = "Tree"
    told = make_deterministic()
    assert told == {"torch": "deterministic", **CUDA_ENVIRONMENT, "NCCL_ALGO": "Tree"}
    assert {name: os.environ[name] for name in CUDA_ENVIRONMENT} == {**CUDA_ENVIRONMENT, "NCCL_ALGO": "Tree"}
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled(), (
        "an operation without such a version runs all the same"
    )
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.benchmark
