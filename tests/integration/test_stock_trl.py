"""Is a run what stock TRL computes? By the docs' own script, with kills where they cost least."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

COMPARE = Path(__file__).parents[2] / "docs/examples/stock_trl/compare.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("compare", COMPARE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stock")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("method", "tensors", "kill"),
    [
        pytest.param("full", 21, False, marks=pytest.mark.slow),
        ("precomputed", 21, False),
        pytest.param("lora", 16, True, marks=pytest.mark.slow),
    ],
)
def test_every_loss_evaluation_and_weight_is_stock_trls(
    script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, tensors: int, kill: bool
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(folder / "home"))
    result = script.compare(method, folder, kill=kill)
    assert result.found == ()
    steps, micro_steps_of_each, ranks = 24, 2, 2
    assert (result.micro_steps, result.evaluations, result.tensors) == (steps * micro_steps_of_each * ranks, 3, tensors)


def test_a_difference_is_found(script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what a test before has left, or in a run of its own."""
    from checkpoints.run_log.run_record import open_run

    monkeypatch.setenv("NOTUS_HOME", str(folder / "home"))
    if not (folder / "stock-precomputed/rank-1.json").exists():
        script.compare("precomputed", folder, kill=False)
    stock, ours = folder / "stock-precomputed", open_run(str(folder / "bucket"), "precomputed")
    assert script.differences(stock, ours).found == ()
    record = json.loads((stock / "rank-1.json").read_text())
    record[7]["losses"][1] = (float.fromhex(record[7]["losses"][1]) * (1 + 2**-23)).hex()
    (stock / "rank-1.json").write_text(json.dumps(record))
    evaluations = json.loads((stock / "evaluations.json").read_text())
    evaluations[2]["eval_loss"] += 1e-9
    (stock / "evaluations.json").write_text(json.dumps(evaluations))
    (path,) = (stock / "final").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = script.differences(stock, ours).found
    assert [one.split(":")[0] for one in found[:2]] == ["step 8 on rank 1", "eval_loss"]
    assert len(found) == 3
    assert found[2].startswith("weights ")
