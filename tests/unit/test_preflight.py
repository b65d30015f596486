"""The check of a VM: what nvidia-smi prints, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from checkpoints.events import read_events
from checkpoints.run import open_run
from trainer.errors import HardwareError
from trainer.preflight import Card, check, main, parse_cards
from trainer.recipe import Hardware

NODE = Hardware(gpus="A100:8", hours=12)
SMI = "NVIDIA A100-SXM4-40GB, 40960, 580.65.06\n" * 8
CARDS = parse_cards(SMI)


def test_a_node_of_the_right_kind_passes() -> None:
    assert CARDS[0] == Card("NVIDIA A100-SXM4-40GB", 40.0, "580.65.06")
    check(NODE, CARDS, free_gib=300)
    check(NODE, [Card("NVIDIA A100-SXM4-80GB", 79.3, "580")] * 8, free_gib=300)
    check(Hardware(hours=1), [], free_gib=0)


def test_a_line_that_is_no_card_is_left_out() -> None:
    assert parse_cards("NVIDIA A100, [N/A], 580\n\nwarning: infoROM is corrupted\n") == []


@pytest.mark.parametrize(
    ("cards", "free_gib", "message"),
    [
        (CARDS[:7], 300.0, "shows 7 GPUs"),
        ([], 300.0, "shows 0 GPUs"),
        ([*CARDS[:7], Card("NVIDIA A10", 22.5, "580")], 300.0, "NVIDIA A10 has 22 GiB"),
        (CARDS, 20.0, "20 GiB of disk"),
    ],
)
def test_what_is_refused(cards: list[Card], free_gib: float, message: str) -> None:
    with pytest.raises(HardwareError, match=message):
        check(NODE, cards, free_gib)


def test_what_is_refused_is_in_the_runs_diary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["preflight", str(tmp_path / "nowhere.yaml")])
    monkeypatch.setenv("NOTUS_RUN", "r")
    monkeypatch.setenv("NOTUS_BUCKET", str(tmp_path / "bucket"))
    (tmp_path / "bucket").mkdir()
    assert main() == 2
    (event,) = read_events(open_run(str(tmp_path / "bucket"), "r"))
    assert (event.kind, event.attempt, event.data["exit_code"]) == ("failed", 0, 2)
    assert event.data["message"] in capsys.readouterr().err
    assert event.data["hint"]


@pytest.mark.parametrize(("bucket", "said"), [("", False), ("nothing://at-all", True)])
def test_a_bucket_that_cannot_be_written_hides_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], bucket: str, said: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["preflight", str(tmp_path / "nowhere.yaml")])
    monkeypatch.setenv("NOTUS_RUN", "r")
    monkeypatch.setenv("NOTUS_BUCKET", bucket)
    assert main() == 2
    told = capsys.readouterr().err
    assert "nowhere.yaml" in told
    assert ("could not note that" in told) == said
