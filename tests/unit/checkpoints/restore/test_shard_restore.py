"""Every damaged byte is noticed, and the newest good checkpoint is used."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import cli
from checkpoints.commit.garbage_collection import collect, collect_orphans
from checkpoints.commit.head import BURIED_S, LEASE_S, Lease, Writer, lease_over_s, pin, read_head
from checkpoints.commit.load import load_index, load_manifest
from checkpoints.commit.reader_leases import announce
from checkpoints.commit.retention import Commit, Retention, Score
from checkpoints.errors import CorruptCheckpoint, NoGoodCheckpoint, UserError
from checkpoints.records.manifest import Manifest
from checkpoints.records.save_keys import save_prefix
from checkpoints.restore.download import pull
from checkpoints.restore.shard_restore import RestoredShard, differing_tensors, newest_good, restore_shard, verify
from checkpoints.save.shard_upload import upload_shard
from checkpoints.snapshot.snapshot import HostBuffer, Snapshot
from checkpoints.storage.base import Store, Stored
from checkpoints.storage.filesystem import FolderStore
from checkpoints.storage.object_store import ObjectStore
from checkpoints.util.clock import FakeClock

RANKS = 2


def state(step: int, rank: int) -> dict[str, Any]:
    return {"model": {"w": torch.arange(20) * step + rank, "b": torch.tensor(float(step))}, "meta": {"step": step}}


class Run:
    """A little run of two ranks in memory."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or ObjectStore.memory()
        self.clock = FakeClock()
        self.lease = Lease.claim(self.store, Writer(id="w", host="h", pid=1), clock=self.clock)

    def save(self, step: int, keep: int = 3) -> Commit:
        prefix = save_prefix(1, step, "writer", step)
        shards = tuple(
            upload_shard(self.store, prefix, rank, Snapshot.take(state(step, rank), HostBuffer()), chunk_bytes=64)
            for rank in range(RANKS)
        )
        manifest = Manifest(
            run="r",
            step=step,
            epoch=1,
            world_size=RANKS,
            created_at=self.clock.now(),
            reason="interval",
            fingerprint={"world_size": RANKS},
            shards=shards,
        )
        return self.lease.commit(manifest, Retention(newest=keep))

    def objects_of(self, commit: Commit) -> list[str]:
        manifest = load_manifest(self.store, commit)
        keys = [commit.manifest]
        for ref in manifest.shards:
            keys += [ref.index, *(chunk.key for chunk in load_index(self.store, ref).chunks)]
        return keys


@pytest.fixture
def run() -> Run:
    return Run()


def test_the_state_comes_back_bit_for_bit(run: Run) -> None:
    commit = run.save(7)
    for rank in range(RANKS):
        trees = restore_shard(run.store, commit, rank).trees()
        wanted = state(7, rank)
        assert torch.equal(trees["model"]["w"], wanted["model"]["w"])
        assert torch.equal(trees["model"]["b"], wanted["model"]["b"])
        assert trees["meta"] == {"step": 7}


def load_all(run: Run, commit: Commit) -> RestoredShard:
    """What all ranks load together; the last one's shard."""
    return [restore_shard(run.store, commit, rank) for rank in range(RANKS)][-1]


def assert_passed_over(run: Run, key: str, what: str = "") -> None:
    """The newest of the two checkpoints has its damage at `key`: every reader says so, and the one before is used."""
    newest, before = run.lease.head.commits
    shard, damaged = newest_good(run.lease.head.commits, lambda commit: load_all(run, commit))
    assert shard is not None
    assert shard.manifest.step == before.step
    ((commit, fault),) = damaged
    assert commit == newest
    assert f"{key}{what}" in fault
    with pytest.raises(CorruptCheckpoint, match=f"{key}{what}"):
        verify(run.store, newest)


@pytest.fixture
def two_saved(run: Run) -> Run:
    """Objects of the newest: a manifest, and of each rank an index and four chunks."""
    run.save(5)
    newest = run.save(7)
    assert len(run.objects_of(newest)) == 1 + RANKS * 5
    return run


def test_every_flipped_byte_is_noticed_and_named_and_the_checkpoint_before_is_used(two_saved: Run) -> None:
    run = two_saved
    newest = run.lease.head.commits[0]
    for key in run.objects_of(newest):
        data = run.store.get(key).data
        for position in range(len(data)):
            run.store.put(key, data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
            assert_passed_over(run, key)
        run.store.put(key, data)
    assert verify(run.store, newest).step == 7


def test_every_cut_growth_and_loss_is_noticed_and_named_and_the_checkpoint_before_is_used(two_saved: Run) -> None:
    run = two_saved
    newest = run.lease.head.commits[0]
    for key in run.objects_of(newest):
        data = run.store.get(key).data
        for damaged in (*(data[:length] for length in range(len(data))), data + b"x"):
            run.store.put(key, damaged)
            assert_passed_over(run, key)
        run.store.delete(key)
        assert_passed_over(run, key, " is missing")
        run.store.put(key, data)
    assert verify(run.store, newest).step == 7


def test_the_newest_good_checkpoint_is_used_and_the_damaged_ones_are_named(run: Run) -> None:
    run.save(5)
    bad_ten, bad_fifteen = run.save(10), run.save(15)
    run.store.delete(run.objects_of(bad_fifteen)[-1])
    chunk = run.objects_of(bad_ten)[2]
    run.store.put(chunk, b"?" + run.store.get(chunk).data[1:])
    shard, damaged = newest_good(run.lease.head.commits, lambda commit: restore_shard(run.store, commit, 0))
    # rank 0 alone does not see the last chunk of rank 1 in step 15: that is what `agree` is for
    assert shard is not None
    assert shard.manifest.step == 15
    seen_by_rank_1 = {15: "rank 1: missing", 10: "", 5: ""}
    steps = iter([15, 10, 5])

    def agree(fault: str) -> list[str]:
        return [text for text in (fault, seen_by_rank_1[next(steps)]) if text]

    shard, damaged = newest_good(run.lease.head.commits, lambda commit: restore_shard(run.store, commit, 0), agree)
    assert shard is not None
    assert shard.manifest.step == 5
    assert [(commit.step, "missing" in fault or "CRC32C" in fault) for commit, fault in damaged] == [
        (15, True),
        (10, True),
    ]


def test_a_run_with_only_damaged_checkpoints_refuses_to_start_anew(run: Run) -> None:
    commit = run.save(5)
    run.store.delete(commit.manifest)
    with pytest.raises(NoGoodCheckpoint, match="none of the 1 committed checkpoints is intact"):
        newest_good(run.lease.head.commits, lambda c: restore_shard(run.store, c, 0))


def test_a_run_without_checkpoints_starts(run: Run) -> None:
    assert newest_good((), lambda c: restore_shard(run.store, c, 0)) == (None, [])


def test_retention_deletes_only_what_head_has_forgotten_long_ago(run: Run) -> None:
    commits = [run.save(step, keep=2) for step in (1, 2, 3, 4)]
    old = run.objects_of(commits[0])
    assert collect(run.store, run.lease, run.clock.now()) == 0
    run.clock.sleep(3600)
    assert collect(run.store, run.lease, run.clock.now()) == 2
    left = {entry.key for entry in run.store.list("")}
    assert not left & set(old)
    for commit in commits[2:]:
        assert verify(run.store, commit)
    assert run.lease.head.tombstones == ()
    assert collect(run.store, run.lease, run.clock.now()) == 0


def test_what_a_crashed_attempt_left_is_collected_by_its_successor(run: Run) -> None:
    good = run.save(5)
    snapshot = Snapshot.take(state(9, 0), HostBuffer())
    upload_shard(run.store, save_prefix(1, 9, "writer", 9), 0, snapshot, chunk_bytes=64)  # rank 1 never came
    run.store.put("manifests/s00000009-e000001-00ff.json", b"{}")  # lost the race for HEAD
    assert collect_orphans(run.store, run.lease) == 0, "they may be this attempt's own, on their way"
    successor = Lease.claim(run.store, Writer(id="w2", host="h", pid=2), clock=run.clock, gone="w")
    before = {entry.key for entry in run.store.list("")}
    gone = collect_orphans(run.store, successor)
    left = {entry.key for entry in run.store.list("")}
    assert gone == len(before - left) > 3
    assert not any("s00000009" in key for key in left)
    assert verify(run.store, good).step == 5


def test_a_save_that_was_given_up_is_collected_after_the_next_one(run: Run) -> None:
    """Its attempt lives: nobody but itself may say that it is over."""
    snapshot = Snapshot.take(state(6, 0), HostBuffer())
    upload_shard(run.store, save_prefix(1, 6, "writer", 6), 0, snapshot, chunk_bytes=64)  # given up
    run.store.put("manifests/s00000006-e000001-00ff.json", b"{}")  # its HEAD was never written
    good = run.save(7)
    upload_shard(run.store, save_prefix(1, 8, "writer", 8), 1, snapshot, chunk_bytes=64)  # another rank is ahead
    assert collect_orphans(run.store, run.lease, before_save=7) > 3
    left = {entry.key for entry in run.store.list("")}
    assert not any("s00000006" in key for key in left)
    assert any("s00000008" in key for key in left)
    assert verify(run.store, good).step == 7


def test_orphans_stay_while_a_manifest_is_unreadable(run: Run) -> None:
    commit = run.save(5)
    run.store.put(commit.manifest, b"damaged")
    successor = Lease.claim(run.store, Writer(id="w2", host="h", pid=2), clock=run.clock, gone="w")
    assert collect_orphans(run.store, successor) == 0
    assert [entry.key for entry in run.store.list("data")] != []


def test_shards_are_compared_by_their_hashes(run: Run) -> None:
    one, other = (load_manifest(run.store, run.save(step)) for step in (5, 6))
    a, b = load_index(run.store, one.shards[0]), load_index(run.store, other.shards[0])
    assert differing_tensors(a, a) == []
    assert differing_tensors(a, b) == ["model/b", "model/w", "meta"]


def test_reading_needs_no_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = run.save(3)
    monkeypatch.delitem(sys.modules, "torch")
    trees = restore_shard(run.store, commit, 0).trees()
    assert trees["model"]["w"].tolist() == [3 * i for i in range(20)]


# --- notus-ckpt -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder_run(tmp_path: Path) -> Run:
    made = Run(FolderStore(tmp_path, "run"))
    for step in (5, 10):
        made.save(step)
    return made


def ckpt(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["notus-ckpt", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_ls_show_and_verify(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = folder_run.store.url
    assert ckpt("ls", url, "-o", "json", monkeypatch=monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["reason"], row["world_size"]) for row in rows] == [
        (10, "interval", 2),
        (5, "interval", 2),
    ]
    assert ckpt("show", url, "--step", "5", "--tensors", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "model/w" in text
    assert "fingerprint.world_size" in text
    assert ckpt("verify", url, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == ["step 10: good (512 B)", "step 5: good (512 B)"]


def test_verify_names_the_damage_and_fails(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = folder_run.objects_of(folder_run.lease.head.commits[0])[2]
    folder_run.store.put(chunk, folder_run.store.get(chunk).data[:-1])
    assert ckpt("verify", folder_run.store.url, monkeypatch=monkeypatch) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert f"{chunk} has 63 bytes instead of 64" in first
    assert second == "step 5: good (512 B)"


def test_pull_takes_one_checkpoint_and_goes_on_where_it_stopped(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder_run.store.put("model/config.json", b"{}")
    target = tmp_path / "pulled"
    for _ in range(2):
        assert ckpt("pull", folder_run.store.url, str(target), "--step", "5", monkeypatch=monkeypatch) == 0
        chunk = next(entry.key for entry in FolderStore(target).list("data") if "/c" in entry.key)
        (target / chunk).write_bytes(b"cut")  # an interrupted copy: the second round makes it good
    assert ckpt("pull", folder_run.store.url, str(target), "--step", "5", monkeypatch=monkeypatch) == 0
    assert ckpt("verify", str(target), monkeypatch=monkeypatch) == 0
    assert "step 5: good (512 B)" in capsys.readouterr().out.splitlines()
    assert (target / "model/config.json").read_bytes() == b"{}"
    assert ckpt("pull", folder_run.store.url, str(target), "--step", "10", monkeypatch=monkeypatch) == 0
    assert [entry.key for entry in FolderStore(target).list("model")] == ["model/config.json"]


def test_pinned_checkpoints_stay(folder_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ckpt("pin", folder_run.store.url, "--step", "5", monkeypatch=monkeypatch) == 0
    for step in (15, 20, 25):
        folder_run.save(step, keep=2)
    assert [commit.step for commit in folder_run.lease.head.commits] == [25, 20, 5]
    assert ckpt("pin", folder_run.store.url, "--step", "5", "--remove", monkeypatch=monkeypatch) == 0
    folder_run.save(30, keep=2)
    assert [commit.step for commit in folder_run.lease.head.commits] == [30, 25]


def test_a_step_that_is_gone_cannot_be_pinned(run: Run) -> None:
    run.save(5)
    with pytest.raises(UserError, match="the checkpoint of step 99 is gone"):
        pin(run.store, 99)


def test_pull_keeps_only_what_it_has_checked(folder_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte flips on the way, now and then: what is on the disk must be good all the same."""
    real, calls = folder_run.store.get, iter(range(10**6))

    def flaky(key: str) -> Stored:
        stored = real(key)
        if key.endswith(".json") and next(calls) % 2:
            return stored._replace(data=stored.data[:-3] + b"?" + stored.data[-2:])
        return stored

    head = folder_run.lease.head
    monkeypatch.setattr(folder_run.store, "get", flaky)
    target = pull(folder_run.store, head, head.commits[0], tmp_path / "pulled")
    assert verify(target, head.commits[0]).step == 10


def test_every_nth_checkpoint_stays(run: Run) -> None:
    for step in range(1, 13):
        commit = run.lease.commit(load_manifest(run.store, run.save(step * 10, keep=100)), Retention(newest=100))
        assert commit.step == step * 10
    manifest = load_manifest(run.store, run.lease.head.commits[0]).model_copy(update={"step": 125})
    run.lease.commit(manifest, Retention(newest=2, every_steps=50))
    assert [commit.step for commit in run.lease.head.commits] == [125, 120, 100, 50]


def test_gc_cleans_up_only_where_nobody_trains(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = folder_run.store.url
    folder_run.store.put("data/e000000-s00000003-x/r00000/c00000", b"left behind")
    held = Lease.claim(folder_run.store, Writer(id="alive", host="h", pid=1), gone="w")

    class Beside(FakeClock):
        """The attempt lives."""

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            held.renew()

    monkeypatch.setattr("checkpoints.cli.SystemClock", Beside)
    assert ckpt("gc", url, "--abandoned", monkeypatch=monkeypatch) == 2, "a sign of life counts more"
    assert "the run is held by attempt 2" in capsys.readouterr().err
    monkeypatch.setattr("checkpoints.cli.SystemClock", FakeClock)
    assert ckpt("gc", url, monkeypatch=monkeypatch) == 2, "nor is one that is silent fenced: it may be cut off"
    told = capsys.readouterr().err
    assert "the run is held by attempt 2" in told
    assert "--abandoned" in told
    held.renew()
    held.release()
    assert ckpt("gc", url, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "deleted 0 expired checkpoints and 1 orphaned objects\n"
    assert ckpt("verify", url, monkeypatch=monkeypatch) == 0


def test_gc_leaves_readers_time_and_keeps_what_they_read(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's last holder died long ago by its own clock, which was ahead; so was that of a reader that died."""
    store, ahead = folder_run.store, FakeClock(folder_run.clock.now() + timedelta(days=1))
    commit = folder_run.save(20, keep=2)
    announce(store, "readers/x.json", [commit], ahead)
    for step in (30, 40, 50):
        folder_run.save(step, keep=2)
    clock = FakeClock()
    monkeypatch.setattr("checkpoints.cli.SystemClock", lambda: clock)
    assert ckpt("gc", store.url, "--abandoned", monkeypatch=monkeypatch) == 0
    told = capsys.readouterr().out
    assert "deleted 3 expired checkpoints" in told
    assert "kept 1 expired checkpoints: they have a reader" in told
    assert clock.monotonic() == lease_over_s(LEASE_S) + BURIED_S
    assert verify(store, commit).step == 20
    head = read_head(store)
    assert head is not None
    assert head.released


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "URL", "--step", "6"), "there is no checkpoint of step 6; the nearest is 5"),
        (("show", "URL", "--step", "six"), "--step 'six' is not a step"),
        (("pull", "URL", "/nowhere", "--step", "best"), "no checkpoint has a score"),
        (("ls", "URL/nothing"), "does not exist"),
        (("ls", "URL/.."), "is not a run: it has no HEAD"),
        (("ls", "URL", "-o", "xml"), "'xml' is not one of 'text', 'json'"),
    ],
)
def test_bad_input(
    folder_run: Run,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.replace("URL", folder_run.store.url) for argument in arguments]
    assert ckpt(*filled, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_the_best_checkpoint_by_name(
    folder_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_run.lease.score(5, Score(metric="m", value=0.9))
    folder_run.lease.score(10, Score(metric="m", value=0.8))
    assert ckpt("ls", folder_run.store.url, monkeypatch=monkeypatch) == 0
    assert "5 (best)" in capsys.readouterr().out
    assert ckpt("verify", folder_run.store.url, "--step", "best", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "step 5: good (512 B)\n"


def test_a_lora_checkpoint_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FolderStore(tmp_path)
    lora = Run(store)
    commit = lora.save(5)
    manifest = load_manifest(store, commit).model_copy(
        update={"step": 6, "fingerprint": {"recipe": {"method": "lora"}}}
    )
    lora.lease.commit(manifest, Retention(newest=1))
    assert ckpt("export", store.url, str(tmp_path / "model"), monkeypatch=monkeypatch) == 2
    assert "this is a LoRA run" in capsys.readouterr().err


def test_a_snapshot_in_this_machines_memory_is_used_if_it_is_the_checkpoint(run: Run, tmp_path: Path) -> None:
    commit = run.save(7)
    manifest = load_manifest(run.store, commit)
    chunks = load_index(run.store, manifest.shards[1]).chunks
    for chunk in chunks:
        run.store.delete(chunk.key)  # so that only the memory can have it
    local = tmp_path / "r1"
    data = bytes(Snapshot.take(state(7, 1), HostBuffer()).data)
    local.write_bytes(data + bytes(100))  # a buffer may be larger than its snapshot
    assert restore_shard(run.store, commit, 1, local=local).trees()["model"]["w"].equal(state(7, 1)["model"]["w"])
    for position in range(len(data)):
        local.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(CorruptCheckpoint, match="is missing"):
            restore_shard(run.store, commit, 1, local=local)


@pytest.mark.parametrize("what", ["another step", "another rank", "shorter", "nothing"])
def test_any_other_memory_is_passed_over(run: Run, tmp_path: Path, what: str) -> None:
    commit = run.save(7)
    local = tmp_path / "r1"
    found = {"another step": state(8, 1), "another rank": state(7, 0), "shorter": {"meta": {}}}
    if what in found:
        local.write_bytes(Snapshot.take(found[what], HostBuffer()).data)
    shard = restore_shard(run.store, commit, 1, local=local)
    assert shard.trees()["model"]["w"].equal(state(7, 1)["model"]["w"])
