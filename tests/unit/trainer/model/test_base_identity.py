"""The identity of a base model: the same weights are the same base, wherever they come from and however they are cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainer.config.fingerprint import base_change, base_revision
from trainer.model.base_identity import WHOLE_BYTES, hash_weights, identify_base


def weights(**changed: float) -> dict[str, torch.Tensor]:
    """A small tensor and one of which only pieces are read."""
    made = {"small": torch.zeros(3, 5), "large": torch.zeros(WHOLE_BYTES // 4 + 1)}
    for name, value in changed.items():
        made[name] = made[name] + value
    return made


def folder(path: Path, *files: dict[str, torch.Tensor], **metadata: str) -> Path:
    path.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, path / f"model-{number}.safetensors", metadata or None)
    return path


def test_the_hash_sees_every_tensor_and_not_the_files(tmp_path: Path) -> None:
    made = weights()
    whole = hash_weights(folder(tmp_path / "one", made))
    assert whole == hash_weights(folder(tmp_path / "two", {"large": made["large"]}, {"small": made["small"]}, by="me"))
    others = [weights(small=1), weights(large=1), {"small": made["small"]}, {**made, "small": torch.zeros(5, 3)}]
    hashes = {hash_weights(folder(tmp_path / f"other {n}", other)) for n, other in enumerate(others)}
    assert len(hashes | {whole}) == 5


def test_older_formats_are_hashed_as_files(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"one")
    one = identify_base(str(tmp_path), None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"two")
    assert one["commit"] is None
    assert one["weights"] != identify_base(str(tmp_path), None)["weights"]


class Hub:
    """A model of which the Hub tells the files."""

    files: dict[str, str]
    fails = False

    def model_info(self, name: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if self.fails:
            raise OSError("no route")
        told = [
            SimpleNamespace(rfilename=file, lfs=SimpleNamespace(sha256=sha), blob_id=None)
            for file, sha in self.files.items()
        ]
        return SimpleNamespace(siblings=told)


def test_a_model_of_the_hub_is_known_by_its_weights_and_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = iter(("c1", "c2", "c3", "c4"))
    config = SimpleNamespace(from_pretrained=lambda name, revision: SimpleNamespace(_commit_hash=next(commits)))
    monkeypatch.setattr("transformers.AutoConfig", config)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.files = {"README.md": "r1", "model.safetensors": "w1", "pytorch_model.bin": "b1"}
    first = identify_base("me/model", None)
    Hub.files = {"README.md": "r2", "model.safetensors": "w1", "pytorch_model.bin": "b2"}
    second = identify_base("me/model", None)
    Hub.files = {"model.safetensors": "w2"}
    third = identify_base("me/model", None)
    monkeypatch.setattr(Hub, "fails", True)
    assert [one["commit"] for one in (first, second, third)] == ["c1", "c2", "c3"]
    assert first["weights"] == second["weights"] != third["weights"]
    assert identify_base("me/model", None) == {"commit": "c4", "weights": None}


def test_a_run_goes_on_with_the_commit_that_it_began_with() -> None:
    assert base_revision({"commit": "c0ffee", "weights": "w1"}, "main") == "c0ffee", "the branch may have moved"
    assert base_revision({"commit": "c0ffee", "weights": "w1"}, None) == "c0ffee"
    assert base_revision({"commit": None, "weights": "w1"}, None) is None
    assert base_revision(None, "v1") == "v1"


def test_files_of_a_tokenizer_count_too_but_for_runs_that_began_without_them(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", weights())
    (base / "config.json").write_text("{}")
    older = identify_base(str(base), None)
    for name in ("spiece.model", "bpe.codes", "additional_chat_templates/tool_use.jinja"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("one")
    mine = identify_base(str(base), None)
    assert base_change(older, mine) is None, "they say nothing of these files"
    (base / "additional_chat_templates/tool_use.jinja").write_text("two")
    assert "tool_use" in str(base_change(mine, identify_base(str(base), None)))
