"""A snapshot of a GPU's state, into pinned memory and beside the training."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from checkpoints.snapshot.shared_memory import RunMemory, SharedBuffer
from checkpoints.snapshot.snapshot import Plan


@pytest.fixture
def memory() -> Iterator[RunMemory]:
    """Where the trainer has it: CUDA pins no file of a disk."""
    made = RunMemory("tests-gpu")
    yield made
    made.forget("w")


@pytest.fixture
def buffer(memory: RunMemory) -> SharedBuffer:
    from trainer.devices.device_copy import pinning

    return SharedBuffer(memory.snapshot("w", 0), pin=pinning("cuda"))


def test_the_memory_is_pinned_and_given_back(buffer: SharedBuffer) -> None:
    import torch

    memory = buffer.reserve(1 << 20)
    assert torch.frombuffer(memory, dtype=torch.uint8).is_pinned()
    del memory
    grown = buffer.reserve(1 << 22)
    assert torch.frombuffer(grown, dtype=torch.uint8).is_pinned()
    buffer.unlink()
    assert not torch.frombuffer(grown, dtype=torch.uint8).is_pinned()


def test_it_holds_what_the_step_before_it_has_made(buffer: SharedBuffer) -> None:
    """The copy's stream waits for the kernels that were queued before it, and not for those after it."""
    import torch

    from trainer.devices.device_copy import copy_scope

    big = torch.randn(4096, 4096, device="cuda")
    state = torch.zeros(1 << 22, device="cuda")
    plan = Plan.of({"s": {"state": state, "strided": state.view(2048, 2048).t()}})
    memory = buffer.reserve(plan.size_bytes)
    torch.cuda.synchronize()
    for _ in range(50):  # some 10 ms of work, queued before the state is written
        big = torch.mm(big, big) / 4096
    state += 1
    with copy_scope("cuda")():
        snapshot = plan.copy(memory)
    copied = torch.frombuffer(snapshot.data, dtype=torch.float32)
    assert copied[: 2 * state.numel()].eq(1).all()


def test_memory_that_cant_be_pinned_is_used_all_the_same(
    buffer: SharedBuffer, caplog: pytest.LogCaptureFixture
) -> None:
    """The failed call's error is not left for the training's next kernel, as it once was."""
    import torch

    from trainer.devices.device_copy import pinning

    pin = pinning("cuda")
    assert pin is not None
    with caplog.at_level(logging.WARNING):
        pin(buffer.reserve(1 << 20))()  # a second time: CUDA refuses
    assert "can't be pinned" in caplog.text
    state = torch.ones(1 << 18, device="cuda")
    snapshot = Plan.of({"s": {"state": state}}).copy(buffer.reserve(1 << 20))
    assert torch.frombuffer(snapshot.data, dtype=torch.float32).eq(1).all()
