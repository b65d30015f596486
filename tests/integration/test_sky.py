"""SkyPilot itself parses our tasks. In a process of its own: importing it writes below HOME."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.sky.tasks import LADDER, shipped_tasks

PARSE = """
import json, sys
import sky, yaml
config = yaml.safe_load(open(sys.argv[1]))
secrets = list(config["secrets"])
task = sky.Task.from_yaml_config(
    config,
    env_overrides=[("NOTUS_BUCKET", "gs://b")],
    secrets_overrides=[(name, "x") for name in secrets],
)
print(json.dumps({
    "resources": [
        [str(r.cloud).lower(), r.use_spot, r.accelerators, r.job_recovery, r.disk_size] for r in task.resources
    ],
    "ordered": isinstance(task.resources, list),
    "envs": dict(task.envs),
    "secrets": sorted(task.secrets),
    "declared": sorted(secrets),
    "run": task.run,
    "setup": task.setup,
}))
"""


@pytest.fixture
def sky_environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(tmp_path),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_USER_ID": "deadbeef",
    }


@pytest.mark.parametrize("name", sorted(shipped_tasks()))
def test_skypilot_reads_what_we_mean(name: str, sky_environment: dict[str, str]) -> None:
    path = Path(__file__).parents[2] / "sky_tasks" / name
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(path)], env=sky_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    wanted = []
    for rung in LADDER:
        gpu, count = rung.gpus.split(":")
        wanted.append([rung.cloud, rung.spot, {gpu: int(count)}, recovery, 512])
    assert task["ordered"]
    assert task["resources"] == wanted
    assert task["secrets"] == task["declared"]
    assert task["envs"]["NOTUS_BUCKET"] == "gs://b"
    assert 'notus-train "$NOTUS_RECIPE" --run "$NOTUS_RUN" --bucket "$NOTUS_BUCKET"' in task["run"]
    assert "constraints.txt" in task["setup"]


def test_skypilot_refuses_to_launch_without_a_bucket(sky_environment: dict[str, str]) -> None:
    path = Path(__file__).parents[2] / "sky_tasks/notus-7b-dpo.yaml"
    code = "import sys, sky; sky.Task.from_yaml(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=sky_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "NOTUS_BUCKET" in done.stderr
