"""A machine that has never compiled DeepSpeed's operators starts without a compiler's work."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.run_log.run_record import open_run
from tests.integration.conftest import Launcher, stop_after


@pytest.mark.slow
def test_a_new_machine_takes_the_operators_from_the_bucket(launcher: Launcher, tmp_path: Path) -> None:
    arguments = launcher.local("tiny-dpo", "--name", "run")
    launcher.environment |= {
        "HF_TOKEN": "hf_only_for_a_test_of_operators",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "first"),
    }
    stop_after(launcher, arguments, "run", 2)
    compiled = list((tmp_path / "first").rglob("*.so"))
    assert compiled
    keys = [entry.key for entry in open_run(launcher.bucket, "run").list("cache/ops")]
    assert sorted(key.rsplit("/", 1)[1] for key in keys) == sorted(["index.json", *(path.name for path in compiled)])

    launcher.environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path / "second")
    launcher.run(*arguments).receipt()
    log = launcher.run("logs", "run", "--attempt", "2").out
    assert f"the operator {compiled[0].stem} comes from the bucket" in log
    assert [path.name for path in (tmp_path / "second").rglob("*.so")] == [compiled[0].name], "kept for other runs"
