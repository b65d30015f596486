"""What makes weights a model is handed out only as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.commit.folder_manifest import MODEL, FileList, check_files, fetch_model_files, put_files, read_list
from checkpoints.errors import CorruptCheckpoint
from checkpoints.run_log.run_record import PINS_KEY
from checkpoints.storage.object_store import ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """A run with a config and a tokenizer."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_text('{"rms_norm_eps": 1e-06}')
    (folder / "tokenizer.json").write_text("{}")
    store = ObjectStore.memory()
    store.put(PINS_KEY, b"{}")
    put_files(store, MODEL, sorted(folder.iterdir()))
    return store


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def test_they_come_back_as_they_were(store: ObjectStore, target: Path) -> None:
    assert fetch_model_files(store, target) == ["config.json", "tokenizer.json"]
    assert json.loads((target / "config.json").read_text()) == {"rms_norm_eps": 1e-06}
    assert {path.name for path in target.iterdir()} == {"config.json", "tokenizer.json"}


def test_a_changed_config_is_not_handed_out(store: ObjectStore, target: Path) -> None:
    """It is valid JSON, and was exported without a word."""
    store.put("model/config.json", b'{"rms_norm_eps": 1e-05}')
    with pytest.raises(CorruptCheckpoint, match=r"model/config\.json differs from its hash"):
        fetch_model_files(store, target)
    listed = read_list(store, MODEL)
    assert listed is not None
    assert [name for name, fault in check_files(store, MODEL, listed.files).items() if fault] == ["config.json"]


def test_a_file_that_no_list_names_is_left_out(
    store: ObjectStore, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("model/modeling_llama.py", b"import os")
    fetch_model_files(store, target)
    assert not (target / "modeling_llama.py").exists()
    assert "no list names it: modeling_llama.py" in caplog.text


def test_a_missing_file_and_a_missing_list_are_damage(store: ObjectStore, target: Path) -> None:
    store.delete("model/tokenizer.json")
    with pytest.raises(CorruptCheckpoint, match=r"model/tokenizer\.json is missing"):
        fetch_model_files(store, target)
    store.delete("model.json")
    with pytest.raises(CorruptCheckpoint, match=r"model\.json is missing, so model/ can't be checked"):
        fetch_model_files(store, target)


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "/etc/passwd"])
def test_a_list_can_lead_nowhere_else(store: ObjectStore, target: Path, name: str) -> None:
    store.put("model.json", FileList(files={name: "0" * 32}).to_json())
    with pytest.raises(CorruptCheckpoint, match="names a file"):
        fetch_model_files(store, target)


def test_of_a_run_that_is_older_than_the_lists_they_are_taken_with_a_word(
    store: ObjectStore, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.delete("model.json")
    store.delete(PINS_KEY)
    assert fetch_model_files(store, target) == ["config.json", "tokenizer.json"]
    assert "its model/ is taken unchecked" in caplog.text


def test_a_run_without_a_model_has_none(target: Path) -> None:
    assert fetch_model_files(ObjectStore.memory(), target) == []
