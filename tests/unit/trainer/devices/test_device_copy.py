"""Pinned memory, against a CUDA driver that refuses; the real one is in tests/gpu."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from trainer.devices.device_copy import pinning


class Driver:
    """cudaHostRegister fails, and CUDA keeps the error for the next call, whoever makes it."""

    def __init__(self) -> None:
        self.kept = 0
        self.unregistered = False

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        self.kept = 1
        return 1

    def cudaHostUnregister(self, address: int) -> None:
        self.unregistered = True

    def zeros(self, *shape: int, **how: Any) -> None:
        code, self.kept = self.kept, 0
        if code:
            raise RuntimeError("CUDA error: invalid argument")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch, "zeros", made.zeros)
    return made


def test_a_refused_pin_is_told_and_leaves_the_training_no_error(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    pin = pinning("cuda")
    assert pin is not None
    with caplog.at_level(logging.WARNING):
        undo = pin(memoryview(bytearray(64)))
    assert "can't be pinned (CUDA error 1)" in caplog.text
    torch.zeros(1, device="cuda")
    undo()
    assert not driver.unregistered


def test_a_gpu_that_is_broken_is_not_taken_for_that(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*shape: int, **how: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "zeros", broken)
    pin = pinning("cuda")
    assert pin is not None
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pin(memoryview(bytearray(64)))


def test_nothing_is_pinned_on_a_cpu() -> None:
    assert pinning("cpu") is None
