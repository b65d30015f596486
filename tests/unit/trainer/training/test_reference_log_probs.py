"""The reference model's log-probabilities: computed once, in pieces that any attempt can go on from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.storage.base import Stored
from checkpoints.storage.filesystem import FolderStore
from trainer.training.reference_log_probs import (
    CHUNK_BATCHES,
    ChunkPrefetch,
    ReferenceCache,
    Values,
    compute,
    reference_key,
)

ROWS, BATCH = 700, 4


class Preempted(Exception):
    pass


def forward(rows: range) -> Values:
    """Depends on the row and on its whole batch, as padding makes it in bf16."""
    return np.array([[row + 0.001 * rows.start, -row - 0.001 * len(rows)] for row in rows], dtype=np.float32)


def alone(cache: ReferenceCache, how: Callable[[range], Values] = forward) -> Values:
    return compute(cache, how, rank=0, world_size=1, share=lambda value: [value], first=lambda value: value)


def together(cache: ReferenceCache, world_size: int, calls: list[int]) -> list[Values]:
    """As many threads as ranks; a barrier makes every exchange collective, and a missing call a deadlock."""
    barrier = threading.Barrier(world_size, timeout=20)
    told: list[Any] = [None] * world_size
    found: list[Any] = [None] * world_size

    def rank(number: int) -> None:
        def share(value: Any) -> list[Any]:
            told[number] = value
            barrier.wait()
            everyone = list(told)
            barrier.wait()
            return everyone

        def counted(rows: range) -> Values:
            calls[number] += 1
            share(None)  # ZeRO-3 gathers in every forward pass
            return forward(rows)

        found[number] = compute(
            cache, counted, rank=number, world_size=world_size, share=share, first=lambda value: share(value)[0]
        )

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def cache(tmp_path: Path) -> ReferenceCache:
    return ReferenceCache(FolderStore(tmp_path), "key", ROWS, BATCH)


def test_every_row_has_its_values_in_order(cache: ReferenceCache) -> None:
    values = alone(cache)
    assert values.shape == (ROWS, 2)
    assert [len(chunk) for chunk in cache.chunks()] == [BATCH * CHUNK_BATCHES, BATCH * CHUNK_BATCHES, 188]
    assert np.array_equal(values, np.concatenate([forward(b) for c in cache.chunks() for b in cache.batches(c)]))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_ranks_gives_the_same_and_each_calls_as_often(
    cache: ReferenceCache, tmp_path: Path, world_size: int
) -> None:
    calls = [0] * world_size
    expected = alone(ReferenceCache(FolderStore(tmp_path), "another", ROWS, BATCH))
    for values in together(cache, world_size, calls):
        assert np.array_equal(values, expected)
    assert len(set(calls)) == 1


def test_what_is_there_is_not_computed_again(cache: ReferenceCache) -> None:
    expected = alone(cache)

    def never(rows: range) -> Values:
        raise AssertionError(rows)

    assert np.array_equal(alone(cache, never), expected)


class Together(FolderStore):
    """Answers when as many have asked as there are chunks: whoever reads one by one waits for ever."""

    def __init__(self, folder: Path, readers: int) -> None:
        super().__init__(folder)
        self.barrier = threading.Barrier(readers, timeout=20)

    def get(self, key: str) -> Stored:
        self.barrier.wait()
        return super().get(key)


def test_the_chunks_are_read_at_once(cache: ReferenceCache, tmp_path: Path) -> None:
    expected = alone(cache)
    assert np.array_equal(alone(ReferenceCache(Together(tmp_path, 3), "key", ROWS, BATCH)), expected)


def test_what_was_read_ahead_is_not_read_again(cache: ReferenceCache, tmp_path: Path) -> None:
    expected = alone(cache)
    store = FolderStore(tmp_path)
    ahead = ChunkPrefetch(store)
    damaged = "cache/reference/key/000000000-000000256"
    assert ahead.take("cache/reference/another") is None
    data = ahead.take(damaged)
    assert data is not None
    ahead._found[damaged] = data[:-1] + b"\x01"
    for entry in list(store.list("cache/reference")):
        store.delete(entry.key)
    computed: list[range] = []

    def counted(rows: range) -> Values:
        computed.append(rows)
        return forward(rows)

    values = compute(
        ReferenceCache(store, "key", ROWS, BATCH, ahead),
        counted,
        rank=0,
        world_size=1,
        share=lambda value: [value],
        first=lambda value: value,
    )
    assert np.array_equal(values, expected)
    assert {rows.start // (BATCH * CHUNK_BATCHES) for rows in computed} == {0}, "the damaged one only"


def test_an_attempt_that_is_killed_leaves_the_chunks_that_were_done(cache: ReferenceCache) -> None:
    seen: list[range] = []

    def until_row(rows: range) -> Values:
        if rows.start >= BATCH * CHUNK_BATCHES + 20:
            raise Preempted
        return forward(rows)

    def counted(rows: range) -> Values:
        seen.append(rows)
        return forward(rows)

    with pytest.raises(Preempted):
        alone(cache, until_row)
    values = alone(cache, counted)
    assert seen[0].start == BATCH * CHUNK_BATCHES, "goes on with the chunk that was under way"
    assert np.array_equal(
        values[:, 0], np.concatenate([forward(b)[:, 0] for c in cache.chunks() for b in cache.batches(c)])
    )


def test_a_damaged_chunk_is_computed_again(cache: ReferenceCache, tmp_path: Path) -> None:
    expected = alone(cache)
    for name, damage in (
        ("000000000-000000256", lambda data: data[:-1] + b"\x01"),
        ("000000512-000000700", lambda _: b""),
    ):
        path = tmp_path / "cache/reference/key" / name
        path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(alone(cache), expected)
    assert np.array_equal(alone(cache), expected)


def test_two_attempts_that_write_the_same_chunk_agree(cache: ReferenceCache) -> None:
    chunk = next(cache.chunks())
    first = np.zeros((len(chunk), 2), dtype=np.float32)
    cache.write(chunk, first)
    cache.write(chunk, first + 1)
    kept = cache.read(chunk)
    assert kept is not None
    assert np.array_equal(kept, first), "the first word stands"


def test_the_key_names_the_model_and_every_token() -> None:
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}]
    key = reference_key({"model": "a"}, rows)
    assert key == reference_key({"model": "a"}, [dict(rows[0])])
    others = [
        reference_key({"model": "b"}, rows),
        reference_key({"model": "a"}, [{**rows[0], "chosen_ids": [5]}]),
        reference_key({"model": "a"}, [{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]}]),
        reference_key({"model": "a"}, rows * 2),
    ]
    assert len({key, *others}) == 5


def test_no_rows_are_no_work(tmp_path: Path) -> None:
    assert alone(ReferenceCache(FolderStore(tmp_path), "key", 0, 4)).shape == (0, 2)
