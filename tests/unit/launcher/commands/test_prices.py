"""`notus-launch prices`: what is shown, what has changed, what a refresh says."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from pathlib import Path

import pytest

from launcher.catalog.gpu_nodes import Gpus
from launcher.catalog.offers import Offer
from launcher.commands import prices as story
from launcher.commands.dry_run import Shown, plan_only
from launcher.commands.prices import Change, compare, prices
from launcher.errors import NothingFits
from launcher.request import LaunchRequest

A100 = LaunchRequest(recipe="", gpus=(Gpus("A100", 8),))
HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice\n"


def offer(price: float, *, cloud: str = "lambda", spot: bool = False, flags: tuple[str, ...] = ()) -> Offer:
    return Offer(
        cloud=cloud, region="r", zone=None, instance_type="i", gpus="A100:8", spot=spot, price_usd_per_hour=price,
        flags=flags,
    )  # fmt: skip


def test_only_what_differs_is_a_change() -> None:
    before = [offer(16.0), offer(11.0, cloud="gcp", spot=True), offer(9.0, cloud="aws")]
    now = [
        offer(12.0),
        offer(2.0, flags=("zero price",)),
        offer(11.0, cloud="gcp", spot=True),
        offer(20.0, cloud="nebius"),
    ]
    assert compare(before, now) == [
        Change(cloud="aws", gpus="A100:8", spot=False, before=9.0, now=None),
        Change(cloud="lambda", gpus="A100:8", spot=False, before=16.0, now=12.0),
        Change(cloud="nebius", gpus="A100:8", spot=False, before=None, now=20.0),
    ]
    assert compare(before, now)[1].share == -0.25


def test_prices_are_shown_with_their_source_and_doubts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    assert prices("show", A100, "text") == 0
    text = capsys.readouterr().out
    assert "the shipped price snapshot" in text
    assert "more than 3x off" in text
    assert prices("show", A100.model_copy(update={"clouds": ("lambda",), "market": "on-demand"}), "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {entry["price_usd_per_hour"] for entry in told["offers"]} == {15.92}


def test_the_age_of_a_list_is_said_and_a_stale_one_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    path = tmp_path / ".sky/catalogs/v8/lambda/vms.csv"
    path.parent.mkdir(parents=True)
    path.write_text(HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,9.00,us-east-1,,\n")
    os.utime(path, (1704067200, 1704067200))  # 2024-01-01
    only = A100.model_copy(update={"clouds": ("lambda",)})
    prices("show", only, "text")
    text = capsys.readouterr().out
    assert re.search(r"for lambda \([\d,]+ days old, edited by hand\)", text)
    assert "warning: the price list" in text
    prices("show", only, "json")
    told = json.loads(capsys.readouterr().out)
    assert "days old" in told["source"]
    assert "older than the shipped price snapshot" in told["warnings"][0]
    assert plan_only(LaunchRequest(recipe="notus-7b-dpo", gpus=A100.gpus, clouds=("lambda",)), Shown("json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert "days old, edited by hand" in told["assumptions"][0]
    assert "older than the shipped price snapshot" in told["warnings"][0]


def test_diff_is_against_the_snapshot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prices("diff", A100, "text") == 0
    assert "no cheapest price has changed" in capsys.readouterr().out
    folder = tmp_path / ".sky/catalogs/v8/lambda"
    folder.mkdir(parents=True)
    (folder / "vms.csv").write_text(HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,7.96,us-east-1,,\n")
    assert prices("diff", A100, "text") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("lambda"))
    assert line.split() == ["lambda", "A100:8", "on", "demand", "15.92", "7.96", "-50%"]


def test_a_refresh_shows_what_it_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def fetch(clouds: tuple[str, ...], say: object) -> dict[str, str]:
        folder = tmp_path / ".sky/catalogs/v8/lambda"
        folder.mkdir(parents=True)
        (folder / "vms.csv").write_text(HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,31.84,us-east-1,,\n")
        return dict.fromkeys(clouds, "fetched")

    monkeypatch.setattr(story.skys, "refresh", fetch)
    assert prices("refresh", A100.model_copy(update={"clouds": ("lambda",)}), "text") == 0
    text = capsys.readouterr().out
    assert "lambda: fetched" in text
    assert "+100%" in text


def test_why_there_is_nothing_to_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NothingFits, match="no offer for H100:4"):
        prices("show", LaunchRequest(recipe="", gpus=(Gpus("H100", 4),)), "text")
    with pytest.raises(NothingFits, match="no spot offer among") as caught:
        prices("show", A100.model_copy(update={"clouds": ("lambda",), "market": "spot"}), "text")
    assert "--on-demand" in caught.value.hint


def test_doubts_count_what_is_above(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "140")
    prices("show", LaunchRequest(recipe=""), "text")
    assert "13 prices look wrong, 1 of them above (-o json has all)" in capsys.readouterr().out
    prices("show", LaunchRequest(recipe="", clouds=("nebius",)), "text")
    assert "no price looks wrong" in capsys.readouterr().out


def test_nothing_fetched_is_nothing_to_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(story.skys, "refresh", lambda clouds, say: dict.fromkeys(clouds, story.skys.FAILED))
    assert prices("refresh", A100, "text") == 1
    text = capsys.readouterr().out
    assert "could not be fetched" in text
    assert "differs" not in text


def test_a_broken_price_list_does_not_keep_a_refresh_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".sky/catalogs/v8/lambda/vms.csv"
    path.parent.mkdir(parents=True)
    path.write_text(HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,n/a,us-east-1,,\n")

    def fetch(clouds: tuple[str, ...], say: object) -> dict[str, str]:
        path.write_text(HEADER + "gpu_8x_a100,A100,8.0,124.0,1800.0,31.84,us-east-1,,\n")
        return dict.fromkeys(clouds, "fetched")

    monkeypatch.setattr(story.skys, "refresh", fetch)
    assert prices("refresh", A100.model_copy(update={"clouds": ("lambda",)}), "json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["changes"][0]["now"] == 31.84
    assert "'n/a' is not a number" in told.err


def test_what_skypilot_says_stays_off_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log handler keeps the stdout that it finds at its import."""
    kept = []

    class Common(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            kept.append(sys.stdout)
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "sky", types.ModuleType("sky"))
    monkeypatch.setitem(sys.modules, "sky.catalog", Common("sky.catalog"))
    outside = sys.stdout
    with pytest.raises(ImportError):
        story.skys.refresh(["lambda"], lambda text: None)
    assert kept
    assert all(stream is not outside for stream in kept)
