"""Every object of a run, damaged in every way: `notus-ckpt verify` finds it, or says that it wasn't read, and why."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from checkpoints import cli
from checkpoints.commit.folder_manifest import FINAL, MODEL, put_files
from checkpoints.errors import CorruptCheckpoint
from checkpoints.records.manifest import CHECK, Record, checksum
from checkpoints.restore.download import pull
from checkpoints.run_log.event_kinds import Damaged
from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.launches import take_launch_number
from checkpoints.run_log.metrics import MOST_RANKS, missing_metrics, read_metrics, write_metrics
from checkpoints.run_log.run_record import PINS_KEY, Heartbeat, RunRecord, is_run, read_heartbeat, register_run
from checkpoints.storage.filesystem import FolderStore
from tests.unit.checkpoints.commit.test_lying_records import signed
from tests.unit.checkpoints.restore.test_shard_restore import Run


class _Pins(Record):
    fingerprint: dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """A run of two ranks with one of everything."""
    (tmp_path / "bucket").mkdir()
    store = FolderStore(tmp_path / "bucket", "r")
    now = datetime.now(UTC)
    register_run(store, RunRecord(name="r", created_at=now, recipe_name="x", recipe={}, identity={"a": 1}, versions={}))
    store.put(PINS_KEY, _Pins(fingerprint={"world_size": 2}).to_json())
    for _ in range(2):
        take_launch_number(store)
    diary = Diary(store, 1)
    diary.write("attempt_started", host="h", processes=2)
    for rank in range(2):
        write_metrics(store, 1, rank, [{"step": step, "loss": 0.5} for step in range(1, 6)])
        write_metrics(store, 1, rank, [{"step": step, "loss": 0.4} for step in range(6, 11)])
    run = Run(store)
    run.save(5)
    run.save(10)
    for folder, names in ((MODEL, ("config.json", "tokenizer.json")), (FINAL, ("config.json", "model.safetensors"))):
        local = tmp_path / folder
        local.mkdir()
        for name in names:
            (local / name).write_text(json.dumps({"of": name}))
        files = put_files(store, folder, sorted(local.iterdir())).files
    diary.write("exported", files=files)
    store.put("logs/a0001/000000000000", b"a line")
    store.put("cache/tokens/0/index.json", b"{}")
    store.put("report.html", b"<html>")
    store.put("somebody-elses.txt", b"?")
    return store


def verify(store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["notus-ckpt", "verify", store.url, "-o", "json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    rows = json.loads(capsys.readouterr().out)
    assert caught.value.code == (1 if any(row["good"] is False for row in rows) else 0)
    return {row["name"]: row for row in rows}


def test_a_good_run_is_good_and_what_was_not_read_is_named(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = verify(store, monkeypatch, capsys)
    assert not [name for name, row in rows.items() if row["good"] is False]
    unread = {"cache/", "logs/", "report.html", "somebody-elses.txt"}
    assert {name for name, row in rows.items() if row["good"] is None} == unread
    assert rows["report.html"]["unread"] == "not checked: for people to read, nothing depends on it"
    assert rows["somebody-elses.txt"]["unread"] == "not part of this run: nothing reads it"
    assert {"step 10", "step 5", "run.json", "pins.json", "model/config.json", "final/model.safetensors"} <= set(rows)
    assert len([name for name in rows if name.startswith(("events/", "metrics/", "launches/"))]) == 8


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_every_damage_is_found_or_named_as_harmless(
    store: FolderStore, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "bucket/r"
    unnoticed = []
    for entry in list(store.list("")):
        path, before = root / entry.key, (root / entry.key).read_bytes()
        if entry.key == "HEAD":
            continue  # without it nothing is a run: see the tests of `rebuild`
        if how == "delete":
            path.unlink()
        else:
            path.write_bytes(bytes([before[0] ^ 1]) + before[1:] if how == "flip" else before[: len(before) // 2])
        rows = verify(store, monkeypatch, capsys)
        if not any(row["good"] is False for row in rows.values()):
            unnoticed.append(entry.key)
        path.write_bytes(before)
    # A line of the diary that is gone can't be missed: lines only tell, and receipts say less without it.
    harmless = (
        "cache/",
        "logs/",
        "report.html",
        "somebody-elses.txt",
        *(("events/", "launches/0002") if how == "delete" else ()),
    )
    if how == "delete":
        harmless += ("final.json",)  # the diary tells the same
    assert [key for key in unnoticed if not key.startswith(harmless)] == []
    assert {key.split("/")[0] for key in unnoticed} >= {"cache", "logs", "somebody-elses.txt"}


def test_a_list_of_the_finished_model_that_is_gone_or_signed_again(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = store.get("final.json").data
    store.delete("final.json")
    row = verify(store, monkeypatch, capsys)["final.json"]
    assert (row["good"], row["unread"]) == (None, "is missing: final/ is checked by the hashes in the diary")
    store.put("final.json", listed)
    (tmp_path / "final/config.json").write_text('{"rms_norm_eps": 1}')
    put_files(store, FINAL, sorted((tmp_path / "final").iterdir()))
    row = verify(store, monkeypatch, capsys)["final.json"]
    assert (row["good"], row["fault"]) == (False, "differs from the diary's record of the export")


@pytest.mark.parametrize("key", ["run.json", "pins.json"])
def test_a_damaged_record_keeps_no_checkpoint_from_being_pulled(
    store: FolderStore, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(key, store.get(key).data.replace(b"a", b"b", 1))
    head = cli.read_head(store)
    assert head is not None
    target = pull(store, head, head.commits[0], tmp_path / "pulled")
    assert cli.verify(target, head.commits[0]).step == 10
    assert key not in {entry.key for entry in target.list("")}
    assert f"{key} differs from its checksum: left out" in caplog.text


def test_a_run_whose_record_is_lost_is_still_a_run(store: FolderStore) -> None:
    store.delete("run.json")
    assert is_run(store)
    store.delete("pins.json")
    assert not is_run(store), "another tool's folder"


SIGNED_AGAIN = {
    "HEAD": lambda read: read.update(lease_until="2026-11-29T10:00:00"),
    "heartbeat.json": lambda read: read.update(time="2026-11-29T10:00:00"),
    "events": lambda read: read.update(time="2026-11-29T10:00:00"),
}


@pytest.mark.parametrize("what", SIGNED_AGAIN)
def test_a_time_without_a_zone_is_damage(store: FolderStore, what: str) -> None:
    """Comparing it with another is a TypeError, and one such run hid all others of its bucket."""
    store.put("heartbeat.json", Heartbeat(attempt=1, time=datetime.now(UTC), phase="training").to_json())
    key = next(entry.key for entry in store.list(what)) if what == "events" else what
    read = json.loads(store.get(key).data)
    SIGNED_AGAIN[what](read)
    store.put(key, signed(read))
    if what == "HEAD":
        with pytest.raises(CorruptCheckpoint):
            cli.read_head(store)
    elif what == "heartbeat.json":
        assert read_heartbeat(store) is None
    else:
        assert any(isinstance(event.payload, Damaged) for event in read_events(store))


@pytest.mark.parametrize("line", [{"loss": 1.0}, [1], {"step": "x"}, {"step": 1, "seconds": "long"}], ids=str)
def test_a_line_that_is_no_steps_metrics_is_damage(store: FolderStore, line: Any) -> None:
    lines = [line]
    data = "".join(json.dumps(one) + "\n" for one in (*lines, {CHECK: checksum(lines)}))
    store.put("metrics/a0001-r00000-s00000011-00000011.jsonl", data.encode())
    assert [item.step for item in read_metrics(store, rank=0)] == list(range(1, 11))


def test_an_attempt_of_a_billion_processes_is_read_in_time() -> None:
    keys = ["metrics/a0001-r00000-s00000001-00000005.jsonl"]
    assert len(missing_metrics(keys, {1: 10**9}, 5)) == MOST_RANKS - 1


def test_a_foreign_file_beside_the_model_is_named(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put("model/modeling_llama.py", b"import os")
    rows = verify(store, monkeypatch, capsys)
    assert rows["model/modeling_llama.py"]["good"] is None
    assert "no list names it" in rows["model/modeling_llama.py"]["unread"]


def test_what_the_run_has_replaced_meanwhile_is_not_called_good(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """HEAD goes on while we read: the checkpoint that couldn't be read whole was said to be good."""
    real = cli.verify

    def beside(through: Any, commit: Any, advance: Any) -> Any:
        if commit.step == 5:
            head = cli.read_head(store)
            assert head is not None
            store.put("HEAD", head.model_copy(update={"commits": head.commits[:1]}).to_json())
            for entry in list(store.list("data")):
                if "s00000005" in entry.key:
                    store.delete(entry.key)
        return real(through, commit, advance)

    monkeypatch.setattr(cli, "verify", beside)
    row = verify(store, monkeypatch, capsys)["step 5"]
    assert row["good"] is None
    assert row["unread"] == "not checked: the run has replaced it meanwhile"


def test_a_checkpoint_that_was_set_aside_stays_until_a_person_says_so(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from checkpoints.commit.head import Lease

    lease = Lease.adopt(store, "w", 1)
    lease.discard([(lease.head.commits[0], "a chunk differs")])
    lease.release()
    before = {entry.key for entry in store.list("data")}

    def gc(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["notus-ckpt", "gc", store.url, *options])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
        return capsys.readouterr().out

    assert "kept step 10 of attempt 1, set aside by attempt 1 as damaged (a chunk differs)" in gc()
    assert {entry.key for entry in store.list("data")} == before
    row = verify(store, monkeypatch, capsys)["step 10 of attempt 1"]
    assert row["good"] is None
    assert "set aside by attempt 1 as damaged" in row["unread"]
    assert "deleted 1 damaged checkpoints" in gc("--damaged")
    assert {entry.key for entry in store.list("data")} == {key for key in before if "s00000005" in key}
    assert [entry.key for entry in store.list("manifests")] == [cli.read_head(store).commits[0].manifest]  # type: ignore[union-attr]


def test_missing_steps_are_named() -> None:
    keys = ["metrics/a0001-r00000-s00000001-00000005.jsonl", "metrics/a0002-r00000-s00000004-00000009.jsonl"]
    assert missing_metrics(keys, {1: 1, 2: 1}, 9) == []
    assert missing_metrics(keys, {1: 1, 2: 1}, 11) == ["metrics of rank 0, steps 10 to 11"]
    assert missing_metrics(keys[1:], {1: 1, 2: 1}, 9) == ["metrics of rank 0, steps 1 to 3"]
    both = [*keys, "metrics/a0001-r00001-s00000001-00000005.jsonl"]
    assert missing_metrics(both, {1: 2, 2: 1}, 9) == [], "the second attempt had one rank"
    assert missing_metrics(both, {1: 2, 2: 2}, 9) == ["metrics of rank 1, steps 6 to 9"]
