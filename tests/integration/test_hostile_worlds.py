"""Two thousand hostile worlds, each a whole run of the real conductor over a fake SkyPilot (tests/support/live_world.py).

Markets that flap, prices that change, teardowns that fail, a bucket that is away, starts and speeds that differ from the
plan, trainers that are deaf, hang, crash or never run, clocks that are off, controllers that restart. In each: the money
spent stays within the budget and what closing takes, a deadline that on demand could keep is kept, no machine is left,
and it ends. `python -m tests.support.hostile SEED` tells the story of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.support.hostile import faults_in

PARTS = 8
WORLDS = int(os.environ.get("NOTUS_WORLDS", "2000"))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """One process a core: each keeps the policy's tables."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
def test_money_time_and_an_end_in_hostile_worlds(pool: ProcessPoolExecutor, part: int) -> None:
    seeds = range(part * WORLDS // PARTS, (part + 1) * WORLDS // PARTS)
    found = dict(zip(seeds, pool.map(faults_in, seeds, chunksize=10), strict=True))
    broken = {seed: faults for seed, faults in found.items() if faults}
    assert not broken, f"seeds {', '.join(map(str, broken))}: {broken}"
