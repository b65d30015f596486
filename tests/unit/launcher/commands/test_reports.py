"""`notus-launch report` on a run of a folder: terminal, JSON, page, two runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from checkpoints.run_log.event_log import Diary
from checkpoints.run_log.metrics import write_metrics
from checkpoints.run_log.run_record import open_run, register_run
from checkpoints.storage.object_store import ObjectStore
from launcher.commands.inspect_runs import show_report
from launcher.commands.receipts import PAGE, keep_page, read_report
from tests.support import recorded_run as night
from trainer.config.recipe import load_recipe
from trainer.main import new_record


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with two runs."""
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "home"))
    (tmp_path / "bucket").mkdir()
    for name in ("night", "other"):
        store = open_run(str(tmp_path / "bucket"), name)
        register_run(store, new_record(name, load_recipe("tiny-dpo")))
        for event in night.events():
            Diary(store, event.attempt).append(event)
        for attempt in (1, 2):
            for rank in (0, 1):
                lines = [row.values for row in night.metrics() if (row.attempt, row.rank) == (attempt, rank)]
                write_metrics(store, attempt, rank, lines)
    return str(tmp_path / "bucket")


def test_results_stand_beside_the_receipt(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(bucket, "night", "text")
    shown = capsys.readouterr().out
    assert "0.3093 (mean of the last 3 steps)" in shown
    assert "40,030 tokens per second" in shown
    assert "at step 30" in shown
    show_report(bucket, "night", "json")
    told = json.loads(capsys.readouterr().out)
    assert told["results"]["evaluation"]["eval_loss"] == 0.61
    assert told["steps"] == night.STEPS


def test_a_page_is_written_for_the_run(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(bucket, "night", "text", html=tmp_path / "night.html")
    text = (tmp_path / "night.html").read_text()
    assert "<title>night" in text
    assert "$89.19" in text
    assert str(tmp_path / "night.html") in capsys.readouterr().err


def test_two_runs_are_shown_side_by_side(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(bucket, "night", "text", compared_with="other")
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["other", "night"]
    assert any(row.split() == ["cost", "$89.19", "$89.19"] for row in rows)
    show_report(bucket, "night", "json", compared_with="other")
    assert [run["run"] for run in json.loads(capsys.readouterr().out)] == ["other", "night"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("night.txt", "not an HTML file"), ("", "is a folder"), ("nowhere/night.html", "there is no folder")],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        show_report("/no/such/bucket", "night", "text", html=tmp_path / name)


def test_a_folder_that_takes_no_file_is_reported(bucket: str) -> None:
    with pytest.raises(UserError, match=r"--html /proc/night\.html: "):
        show_report(bucket, "night", "text", html=Path("/proc/night.html"))


def test_the_page_goes_into_the_runs_folder(bucket: str) -> None:
    store = open_run(bucket, "night")
    keep_page(store, read_report(store, "night"))
    assert b"<title>night" in store.get(PAGE).data


def test_an_empty_run_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    store = ObjectStore.memory()
    report = read_report(store, "empty")
    assert report.receipt.state == "empty"
    keep_page(store, report)
