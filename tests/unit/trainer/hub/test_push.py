"""Pushing: private, without pickles, nothing stale left, and a failure costs nobody a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.run_log.event_log import Diary, read_events
from checkpoints.storage.object_store import ObjectStore
from tests.support.hub_fake import HubFake
from trainer.config.recipe import Hub
from trainer.hub.push import Kind, push_folder, push_model

ADAPTER = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"}
ONE_FILE = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"}
SHARDS = {
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "README.md",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> HubFake:
    return HubFake().install(monkeypatch)


def folder(path: Path, names: set[str]) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("---\n---\n" if name == "README.md" else f"{path.name} {name}")
    return path


def test_the_model_is_pushed_private_and_without_pickles(
    hub: HubFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, wanted = ObjectStore.memory(), Hub(repo="me/model")
    made = folder(tmp_path / "made", ONE_FILE | {"training_args.bin"})
    monkeypatch.delenv("HF_TOKEN")
    assert not push_model(wanted, made, Diary(store, 1))
    assert hub.created == []
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert push_model(wanted, made, Diary(store, 1))
    assert hub.created == [{"repo": "me/model", "private": True, "exist_ok": True}]
    assert hub.names("me/model") == ONE_FILE
    assert [(event.kind, event.data["commit"]) for event in read_events(store)] == [("pushed", "commit1")]


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_failed_push_does_not_fail_the_run(
    hub: HubFake, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    """huggingface_hub raises a RuntimeError for a large file that didn't get through."""
    hub.refusals, hub.refusal = 1, kind("the connection was reset")
    store, made = ObjectStore.memory(), folder(tmp_path / "made", ONE_FILE)
    assert not push_model(Hub(repo="me/model"), made, Diary(store, 1))
    assert "not pushed to me/model: the connection was reset" in caplog.text
    assert read_events(store) == []


@pytest.mark.parametrize("last", [ADAPTER, ONE_FILE, SHARDS], ids=["adapter", "one file", "shards"])
def test_nothing_of_an_earlier_push_of_another_kind_is_left(hub: HubFake, tmp_path: Path, last: set[str]) -> None:
    for number, names in enumerate((ADAPTER, ONE_FILE, SHARDS, ADAPTER, SHARDS, ONE_FILE, last)):
        push_folder("me/model", folder(tmp_path / str(number), names), private=True)
        assert hub.names("me/model") == names
    hub.files["me/model"]["samples.md"] = b"by hand"
    push_folder("me/model", folder(tmp_path / "again", last), private=True)
    assert hub.names("me/model") == last | {"samples.md"}, "what we don't know is the user's"


def test_fewer_shards_of_a_data_set_leave_no_rows_of_the_older_ones(hub: HubFake, tmp_path: Path) -> None:
    kind: Kind = "dataset"
    for shards in (3, 1):
        names = {"README.md"} | {f"data/train-{n:05d}.parquet" for n in range(shards)}
        push_folder("me/pairs", folder(tmp_path / str(shards), names), private=True, kind=kind)
        assert hub.names("me/pairs") == names
    assert hub.created[-1]["repo_type"] == "dataset"
