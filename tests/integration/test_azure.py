"""A whole run with its bucket in Azure Blob Storage, as Microsoft's emulator plays it."""

from __future__ import annotations

from pathlib import Path

from tests.integration.conftest import Launcher
from tests.support.azurite import ACCOUNT, azurite


def test_a_run_is_preempted_and_finishes_there(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with azurite(tmp_path / "server", "notus-test") as server:
        launcher = Launcher(tmp_path / "home", server)
        bucket = ("--bucket", f"az://{ACCOUNT}/notus-test/runs", "--name", "azure")
        arguments = launcher.local("tiny-dpo-lora", *bucket, "--preempt", "1", "--no-compare")
        receipt = launcher.run(*arguments).receipt()
    assert receipt["state"] == "finished"
    assert receipt["preemptions"] == 1
