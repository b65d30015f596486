"""What a save costs the training: the stall that it sees, and how much slower it goes beside an upload."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from checkpoints.save.saver import Saver
from tests.bench.measure import MIB, STATE_BYTES, Memcpy, measured, median, state
from tests.bench.sink import point_to, saver_on, sink


def seconds_of_a_product(going: Callable[[], bool]) -> float:
    """The same arithmetic over and over while `going`."""
    matrix = torch.randn(256, 256)
    products, started = 0, time.perf_counter()
    while going():
        torch.mm(matrix, matrix)
        products += 1
    return (time.perf_counter() - started) / products


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until


LINK_BYTES_PER_SECOND = 500e6


def bench_training(folder: Path) -> dict[str, float]:
    """Visible stall of a save / warm memcpy, and the slowdown of training while an upload runs.

    The upload goes over S3 to the sink, as fast as it can and over a link of 4 Gbit/s; only arithmetic beside it counts.
    The sink is on the same cores, where a real store isn't: its own CPU time is in the slowdown, but where it yields.
    """
    tensors = state()
    memcpy = Memcpy(tensors)
    with uploading(folder) as saver:
        stall = stall_to_memcpy(saver, tensors, memcpy)
    with uploading(folder) as saver:
        slowdown = slowdown_while_uploading(saver, tensors)
    with uploading(folder, yields=True) as saver:
        slowdown_by_us = slowdown_while_uploading(saver, tensors)
    with uploading(folder, LINK_BYTES_PER_SECOND) as saver:
        slowdown_of_link = slowdown_while_uploading(saver, tensors)
    return {
        "stall_to_memcpy": stall,
        "slowdown_while_uploading": slowdown,
        "slowdown_while_uploading_sink_yields": slowdown_by_us,
        "slowdown_while_uploading_500_mb_per_s": slowdown_of_link,
    }


@contextlib.contextmanager
def uploading(folder: Path, bytes_per_second: float = 0, *, yields: bool = False) -> Iterator[Saver]:
    """A saver on a sink, whose uploader has imported what it needs."""
    with sink(folder, bytes_per_second, yields=yields) as port:
        point_to(port)
        with saver_on("s3://bench", STATE_BYTES, commits=False) as saver:
            saver.save(1, {"s": state(MIB)})
            finish(saver)
            yield saver


def finish(saver: Saver) -> None:
    saver.wait()
    assert saver.failure is None, saver.failure


def stall_to_memcpy(saver: Saver, tensors: dict[str, torch.Tensor], memcpy: Memcpy, rounds: int = 5) -> float:
    copy_s = statistics.median(measured(memcpy.copy).wall for _ in range(5))
    stalls = []
    for number in range(2, rounds + 2):
        saver.take_stall_s()
        saver.save(number, {"s": tensors})
        seconds_of_a_product(for_seconds(2.5 * copy_s))  # forward and backward take at least twice the memcpy
        saver.wait_copied()
        for tensor in tensors.values():  # the optimizer step
            tensor[0] += 1
        stalls.append(saver.take_stall_s() / copy_s)
        finish(saver)
    return median(stalls)


def slowdown_while_uploading(saver: Saver, tensors: dict[str, torch.Tensor], rounds: int = 7) -> float:
    slowdowns = []
    for number in range(2, rounds + 2):
        alone = seconds_of_a_product(for_seconds(0.5))
        saver.save(number, {"s": tensors})
        saver.wait_copied()
        slowdowns.append(seconds_of_a_product(saver.poll) / alone - 1)
        finish(saver)
    return median(slowdowns)
