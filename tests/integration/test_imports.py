"""What a start imports, since each restart pays for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

UNWANTED = ("wandb", "tensorboard", "deepspeed", "matplotlib", "scipy", "sklearn", "sky")
"""pandas isn't among them: `datasets` imports it at its top, whatever it is used for (0.4 s on a busy core)."""


def imported_by(module: str, *, before: str = "") -> set[str]:
    """Top-level packages that a fresh process has after this import. A name that is hidden (None) isn't there."""
    tell = "print(*{name.split('.')[0] for name, module in sys.modules.items() if module is not None})"
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{before}\nimport {module}\n{tell}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", ["trainer.supervisor.supervisor", "trainer.training.worker"])
def test_the_supervisor_and_the_download_begin_without_torch(module: str) -> None:
    found = imported_by(module)
    assert "pydantic" in found
    assert found.isdisjoint({"torch", "transformers", "datasets", "pandas", *UNWANTED})


def test_the_training_imports_no_tracker_and_no_deepspeed_that_it_may_not_need() -> None:
    """As the worker does it: DeepSpeed comes with a recipe that has `zero`, a tracker when the training begins."""
    before = "from trainer.training.worker import hide_wandb\nhide_wandb()"
    found = imported_by("trainer.training.attempt", before=before)
    assert {"torch", "trl"} <= found
    assert found.isdisjoint(UNWANTED)


def test_a_dry_run_begins_without_a_store() -> None:
    """It has a second for everything, and reads a bucket only for a run that exists."""
    found = imported_by("launcher.commands.dry_run")
    assert "ruamel" in found
    assert found.isdisjoint({"torch", "awscrt", "obstore", "boto3", *UNWANTED})
