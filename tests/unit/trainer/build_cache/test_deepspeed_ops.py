"""Compiled operators in the bucket: code, so nothing is loaded that this run's machines haven't signed."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from checkpoints.storage.filesystem import FolderStore
from trainer.build_cache import deepspeed_ops
from trainer.build_cache.deepspeed_ops import OpsCache, load, machine_key
from trainer.build_cache.ops_build_folder import KeptOperators
from trainer.build_cache.signed_artifacts import SignedIndex, sign, signing_key

TOKEN = "hf_" + 34 * "a"
SECRET = signing_key({"HF_TOKEN": TOKEN})


@pytest.fixture(autouse=True)
def operators(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """DeepSpeed's own table."""
    table: dict[str, Any] = {}
    monkeypatch.setattr(deepspeed_ops, "_loaded_operators", lambda: table)
    monkeypatch.setattr(deepspeed_ops, "_compiler", lambda: "c++ 13")
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setattr(deepspeed_ops, "load", lambda name, path: path.read_bytes())
    return table


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "bucket").mkdir()
    return FolderStore(tmp_path / "bucket")


def attempt(store: FolderStore, folder: Path, secret: bytes | None = SECRET) -> OpsCache:
    cache = OpsCache(store, folder, secret, KeptOperators(folder, machine_key()))
    cache.prefetch()
    cache.install()
    return cache


def publish(cache: OpsCache, operators: dict[str, Any], folder: Path, name: str = "shm_comm") -> None:
    """As after a first step in which DeepSpeed has compiled it."""
    path = folder / f"{name}.so"
    path.write_bytes(b"code")
    operators[name] = ModuleType(name)
    operators[name].__file__ = str(path)
    cache.publish()
    for thread in threading.enumerate():
        if thread.name == "operators":
            thread.join()
    operators.clear()


def test_what_one_machine_compiled_the_next_one_loads(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path
) -> None:
    publish(attempt(store, tmp_path / "a"), operators, tmp_path)
    attempt(store, tmp_path / "b")
    assert operators == {"shm_comm": b"code"}


@pytest.mark.parametrize("secret", [signing_key({"HF_TOKEN": "hf_of_another_user"}), None])
def test_what_others_signed_is_not_loaded(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, secret: bytes | None
) -> None:
    publish(attempt(store, tmp_path / "a"), operators, tmp_path)
    attempt(store, tmp_path / "b", secret)
    assert operators == {}


def test_what_this_machine_compiled_it_compiles_once(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path
) -> None:
    """Also without a token, and so without the bucket's."""
    home = tmp_path / "home"
    publish(attempt(store, home, secret=None), operators, tmp_path)
    assert OpsCache(store, home, None, KeptOperators(home, machine_key())).install()
    assert operators == {"shm_comm": b"code"}
    assert not OpsCache(store, home, None, KeptOperators(home, "another kind of machine")).install()


def test_a_kept_operator_that_cannot_be_loaded_is_compiled_again(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    publish(attempt(store, home, secret=None), operators, tmp_path)

    def refuse(name: str, path: Path) -> None:
        raise ImportError("file too short")

    monkeypatch.setattr(deepspeed_ops, "load", refuse)
    attempt(store, home, secret=None)
    assert operators == {}
    assert KeptOperators(home, machine_key()).find() == {}


def test_a_home_that_cannot_be_written_ends_no_run(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file")
    publish(attempt(store, tmp_path / "home", secret=None), operators, tmp_path)
    assert "can't be kept" in caplog.text


def forged(key: str, files: dict[str, str]) -> SignedIndex:
    assert SECRET is not None
    return SignedIndex(files=files, signature=sign(SECRET, f"cache/ops/{key}", files))


def test_other_bytes_than_were_signed_are_not_loaded(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(attempt(store, tmp_path / "a"), operators, tmp_path)
    store.put(f"cache/ops/{machine_key()}/shm_comm.so", b"evil")
    attempt(store, tmp_path / "b")
    assert operators == {}
    assert "differs from its hash" in caplog.text


def test_an_index_of_another_kind_of_machine_is_not_taken(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(attempt(store, tmp_path / "a"), operators, tmp_path)
    elsewhere = forged("another", {"shm_comm.so": hashlib.sha256(b"code").hexdigest()})
    store.put(f"cache/ops/{machine_key()}/index.json", elsewhere.to_json())
    attempt(store, tmp_path / "b")
    assert operators == {}
    assert "not signed by this run's machines" in caplog.text


def test_a_name_is_no_path(
    store: FolderStore, operators: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(f"cache/ops/{machine_key()}/index.json", forged(machine_key(), {"../evil": "0" * 64}).to_json())
    attempt(store, tmp_path / "b")
    assert operators == {}
    assert "not a file name" in caplog.text


def test_it_can_be_switched_off_and_needs_a_token() -> None:
    assert signing_key({"HF_TOKEN": TOKEN, "NOTUS_CODE_CACHE": "0"}) is None
    assert signing_key({"HF_TOKEN": "none"}) is None, "anybody could guess it"
    assert signing_key({}) is None
    assert SECRET is not None
    assert b"hf_a" not in SECRET


def test_what_is_no_module_is_an_import_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / f"broken{sysconfig.get_config_var('EXT_SUFFIX')}"
    path.write_bytes(b"not ELF")
    with pytest.raises(ImportError):
        load("broken", path)
