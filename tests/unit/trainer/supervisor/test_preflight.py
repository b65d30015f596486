"""The check of a VM: what nvidia-smi prints, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.run_log.run_record import open_run
from trainer.config.recipe import Hardware, load_recipe
from trainer.data.input_hash import inputs_digest
from trainer.errors import HardwareError, MachineFault
from trainer.supervisor.preflight import Card, check, check_torch, judge, main, parse_cards

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
    ("cards", "free_gib", "kind", "message"),
    [
        (CARDS[:7], 300.0, MachineFault, "shows 7 GPUs"),
        ([], 300.0, MachineFault, "shows 0 GPUs"),
        ([*CARDS[:7], Card("NVIDIA A10", 22.5, "580")], 300.0, MachineFault, "NVIDIA A10 has 22 GiB"),
        ([Card("NVIDIA A10", 22.5, "580")] * 8, 300.0, HardwareError, "NVIDIA A10 has 22 GiB"),
        (CARDS, 20.0, MachineFault, "20 GiB of disk"),
    ],
)
def test_what_is_refused(cards: list[Card], free_gib: float, kind: type[HardwareError], message: str) -> None:
    """One bad machine is no reason to end the run; a kind of node that is too small is."""
    with pytest.raises(HardwareError, match=message) as caught:
        check(NODE, cards, free_gib)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("nvidia-smi"),
        subprocess.CalledProcessError(9, "nvidia-smi", "NVIDIA-SMI has failed: GPU is lost"),
        subprocess.TimeoutExpired("nvidia-smi", 60),
    ],
)
def test_a_machine_whose_gpus_are_broken_asks_for_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(sys, "argv", ["preflight", "notus-7b-dpo"])
    monkeypatch.setenv("NOTUS_RUN", "r")
    monkeypatch.setenv("NOTUS_BUCKET", str(tmp_path))
    assert main() == 75, "the set-up notes it"
    assert read_events(open_run(str(tmp_path), "r")) == []


@pytest.mark.parametrize("hangs", [True, False])
def test_a_torch_that_cannot_use_them_does_too(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    def fails(*_: object, **limits: float) -> subprocess.CompletedProcess[str]:
        if hangs:
            raise subprocess.TimeoutExpired("python", limits["timeout"])
        return subprocess.CompletedProcess("python", 1, "", "Traceback\nRuntimeError: CUDA driver too old\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(MachineFault, match="has not reached the GPUs" if hangs else "CUDA driver too old"):
        check_torch()


@pytest.mark.parametrize(("trained", "code"), [(False, 2), (True, 75)])
def test_a_node_that_an_earlier_attempt_trained_on_is_not_too_small(tmp_path: Path, trained: bool, code: int) -> None:
    recipe = load_recipe("notus-7b-dpo")
    store = open_run(str(tmp_path), "r")
    if trained:
        Diary(store, 1).write("attempt_started", inputs=inputs_digest(recipe))
        Diary(store, 1).write("training", step=1, total_steps=9)
    environment = {"NOTUS_RUN": "r", "NOTUS_BUCKET": str(tmp_path)}
    assert judge(HardwareError("NVIDIA A10 has 22 GiB"), recipe, environment) == code
    assert [event.kind for event in read_events(store)][-1:] == (["training"] if trained else ["failed"])


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


@pytest.mark.parametrize("trained", [False, True])
def test_a_task_with_more_than_one_node_ends_the_job_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: bool
) -> None:
    """Also where an earlier launch of the run had one: a machine more would be paid for the same answer."""
    store = open_run(str(tmp_path), "r")
    if trained:
        Diary(store, 1).write("attempt_started", inputs=inputs_digest(load_recipe("tiny-dpo")))
        Diary(store, 1).write("training", step=1, total_steps=9)
    monkeypatch.setattr(sys, "argv", ["preflight", "tiny-dpo"])
    monkeypatch.setenv("NOTUS_RUN", "r")
    monkeypatch.setenv("NOTUS_BUCKET", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "2")
    assert main() == 2
    assert "asks for 2 nodes" in capsys.readouterr().err
    assert read_events(store)[-1].kind == "failed"
    monkeypatch.setenv("SKYPILOT_NUM_NODES", "1")
    assert main() == 0


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
    assert ("could not record that" in told) == said
