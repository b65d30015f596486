"""A machine that has never compiled DeepSpeed's operators starts without a compiler's work."""

from __future__ import annotations

from pathlib import Path

from checkpoints.run import open_run
from tests.integration.conftest import Launcher, recipe


def test_a_new_machine_takes_the_operators_from_the_bucket(launcher: Launcher, tmp_path: Path) -> None:
    mine = recipe(tmp_path, "tiny-dpo", ("  epochs: 2", "  epochs: 1\n  max_steps: 2"))
    arguments = launcher.local(mine, "--name", "run")
    launcher.environment |= {
        "HF_TOKEN": "hf_only_for_a_test_of_operators",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "first"),
    }
    launcher.run(*arguments).receipt()
    compiled = list((tmp_path / "first").rglob("*.so"))
    assert compiled
    keys = [entry.key for entry in open_run(launcher.bucket, "run").list("cache/ops")]
    assert sorted(key.rsplit("/", 1)[1] for key in keys) == sorted(["index.json", *(path.name for path in compiled)])

    launcher.environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path / "second")
    launcher.run(*arguments).receipt()
    assert not list((tmp_path / "second").rglob("*.so"))
    log = launcher.run("logs", "run", "--attempt", "2").out
    assert f"the operator {compiled[0].stem} comes from the bucket" in log
