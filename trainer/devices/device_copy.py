"""Copying from a GPU beside the training: on a stream of its own, into pinned memory."""

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
    """A context for the snapshot thread: inside it, copies from the GPU don't queue up with the training's kernels.

    On a CPU there is nothing to do.
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
    """Pins the shared memory, so that the GPU writes to it by itself, without a copy on the way."""
    return None if device == "cpu" else _pin


def _pin(memory: memoryview) -> Callable[[], None]:
    address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
    driver = torch.cuda.cudart()
    code = driver.cudaHostRegister(address, memory.nbytes, 0)
    if int(code) != 0:  # a file on a disk, or the limit of locked memory: slower, and right all the same
        logger.warning("the snapshot's memory can't be pinned (CUDA error %s): copies will be slower", int(code))
        _take_error()
        return lambda: None
    return lambda: driver.cudaHostUnregister(address)


def _take_error() -> None:
    """CUDA keeps the error of a failed call for whoever asks next: without this, the training's next kernel."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    torch.zeros(1, device="cuda")  # an error that isn't gone now is one of the GPU
