"""How the bench measures: wall and CPU seconds of a block, a state to copy, and the warm memcpy that it is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

MIB = 1 << 20
STATE_BYTES = 512 * MIB
TENSORS = 64


class Cost:
    """Wall and CPU seconds of a block."""

    def __enter__(self) -> Cost:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *args: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def measured(block: Callable[[], Any]) -> Cost:
    with Cost() as cost:
        block()
    return cost


def median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def state(size_bytes: int = STATE_BYTES) -> dict[str, torch.Tensor]:
    numel = size_bytes // 4 // TENSORS
    return {f"t{i}": torch.full((numel,), float(i)) for i in range(TENSORS)}


class Memcpy:
    """A warm copy of every tensor into memory that was touched before."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.sources = [tensor.numpy() for tensor in tensors.values()]
        self.targets = [np.empty_like(source) for source in self.sources]
        self.copy()

    def copy(self) -> None:
        for source, target in zip(self.sources, self.targets, strict=True):
            np.copyto(target, source)
