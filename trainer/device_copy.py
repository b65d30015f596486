"""Copying from a GPU beside the training: on a stream of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from trainer.settings import Device


def copy_scope(device: Device) -> Callable[[], AbstractContextManager[None]]:
    """A context for the snapshot thread: inside it, copies from the GPU don't queue up with the training's kernels.

    On a CPU there is nothing to do. Not run on a GPU yet.
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
