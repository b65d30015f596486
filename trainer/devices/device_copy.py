"""Copies from a GPU during training, on a separate stream, into pinned memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from checkpoints.snapshot.shared_memory import Pin
from trainer.config.trl_config import Device

logger = logging.getLogger(__name__)


def copy_scope(device: Device) -> Callable[[], AbstractContextManager[None]]:
    """A context for the snapshot thread, in which copies from the GPU don't queue behind the training's kernels.

    Does nothing on a CPU.
    """
    if device == "cpu":
        return contextlib.nullcontext
    # The optimizer step that made the state was queued on this stream: wait for it, once, before the copy.
    training = torch.cuda.current_stream()
    side = torch.cuda.Stream()

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        side.wait_stream(training)
        with torch.cuda.stream(side):
            yield
        side.synchronize()

    return scope


def pinning(device: Device) -> Pin | None:
    """A function that pins the shared memory, so that the GPU writes to it directly; None on a CPU."""
    return None if device == "cpu" else _pin


def _pin(memory: memoryview) -> Callable[[], None]:
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    driver = torch.cuda.cudart()
    code = driver.cudaHostRegister(address, memory.nbytes, 0)
    if int(code) != 0:  # a file on a disk, or the limit of locked memory: slower, but still correct
        logger.warning("the snapshot's memory can't be pinned (CUDA error %s): copies will be slower", int(code))
        _clear_error()
        return lambda: None
    return lambda: driver.cudaHostUnregister(address)


def _clear_error() -> None:
    """Clear the error of a failed CUDA call, which the next call reports: otherwise training's next kernel."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    torch.zeros(1, device="cuda")  # an error that persists is a fault of the GPU
