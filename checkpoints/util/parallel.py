"""Runs a few slow calls concurrently."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel_map(function: Callable[[T], R], items: Iterable[T], concurrency: int) -> list[R]:
    """`list(map(function, items))` with up to `concurrency` calls at once; raises the first error.

    A single item, or a concurrency of 1, runs in the calling thread.
    """
    jobs = list(items)
    if len(jobs) <= 1 or concurrency <= 1:
        return list(map(function, jobs))
    with ThreadPoolExecutor(min(concurrency, len(jobs))) as pool:
        return list(pool.map(function, jobs))
