"""Names and messages are shown as they are, whatever rich would make of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from checkpoints import Checkpointer, cli
from checkpoints.util.command_line import console
from launcher.findings import Finding
from launcher.report.run_tables import findings_table

ODD = ("layers[0]", "a[/b]", "x[red]y", ":smile:")


def test_tensors_with_brackets_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpointer(str(tmp_path), "r") as checkpointer:
        checkpointer.save(1, {"s": {name: torch.ones(2) for name in ODD}}, wait=True)
    monkeypatch.setattr(sys, "argv", ["notus-ckpt", "show", "--tensors", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(f"s/{name}" in shown for name in ODD)


def test_a_table_shows_messages_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(findings_table([Finding("data", "wrong", " ".join(ODD), "rename pairs[1].jsonl")]))
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in (*ODD, "pairs[1].jsonl"))
