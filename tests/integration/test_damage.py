"""Every object of a real run, damaged in every way: `notus-ckpt verify` finds it, or says what isn't read, and why."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoints import cli
from checkpoints.commit.head import read_head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.storage.backend import open_store
from checkpoints.storage.base import Store
from tests.integration.conftest import Launcher, recipe

HARMLESS_TO_LOSE = ("events/", "final.json", "heartbeat.json")
"""A line of the diary only tells, the diary has what final.json says, and of a run that is over the heartbeat tells
nothing: docs/concepts/commit-and-fence.md."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two attempts, with evaluations, a precomputed reference, and everything that a run leaves."""
    folder = tmp_path_factory.mktemp("run")
    launcher = Launcher(folder / "home")
    mine = recipe(folder, "tiny-dpo", ("dpo:\n", "dpo:\n  reference: precomputed\n"))
    launcher.run(*launcher.local(mine, "--name", "r", "--preempt", "1", "--no-compare")).receipt()
    return Path(launcher.bucket) / "r"


def verified(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    monkeypatch.setattr(
        "checkpoints.records.verified_reads.PAUSES_S", ()
    )  # a folder doesn't come to its senses after 5 s
    monkeypatch.setattr(sys, "argv", ["notus-ckpt", "verify", str(folder), "-o", "json"])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().out
    return {row["name"]: row for row in json.loads(told)} if told else {"the run": {"good": False}}


def damaged(data: bytes, how: str, generator: random.Random) -> bytes | None:
    if how == "delete":
        return None
    if how == "cut":
        return data[: len(data) // 2]
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


def test_every_damage_is_found_or_what_it_hit_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "r"))
    sound = verified(copy, monkeypatch, capsys)
    assert not [name for name, row in sound.items() if row["good"] is False]
    unread = tuple(name for name, row in sound.items() if row["good"] is None)
    assert all(sound[name]["unread"] for name in unread), "with the reason"
    store, generator = open_store(str(copy)), random.Random(seed)
    keys, checkpoints = sorted(entry.key for entry in store.list("")), of_checkpoints(store)
    assert len(keys) > 40
    assert len(checkpoints & {*keys}) == len(checkpoints) > 6
    tried = 0
    for key in keys:
        for how in ("flip", "cut", "delete"):
            path, before = copy / key, (copy / key).read_bytes()
            after = damaged(before, how, generator) if before else None
            path.unlink()
            if after is not None:
                path.write_bytes(after)
            rows = verified(copy, monkeypatch, capsys)
            path.write_bytes(before)
            tried += 1
            found = any(row["good"] is False for row in rows.values())
            lost = how == "delete" and key.startswith(HARMLESS_TO_LOSE)
            named = key not in checkpoints and (key.startswith(unread) or key == newest_launch(keys))
            assert found or lost or named, f"{how} of {key}: unnoticed"
    assert tried == 3 * len(keys)


def of_checkpoints(store: Store) -> set[str]:
    """The objects of the checkpoints that HEAD names. Beside them lie those of older ones, until they are collected."""
    head = read_head(store)
    assert head is not None
    found = {commit.manifest for commit in head.commits}
    for commit in head.commits:
        for ref in load_manifest(store, commit).shards:
            found |= {ref.index, *(chunk.key for chunk in load_index(store, ref).chunks)}
    return found


def newest_launch(keys: list[str]) -> str:
    """Nobody can know that there was one more."""
    return max((key for key in keys if key.startswith("launches/")), default="")
