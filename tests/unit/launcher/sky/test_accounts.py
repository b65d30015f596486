"""Credentials are found where SkyPilot looks for them: `doctor` and the dry run say the same."""

from __future__ import annotations

from pathlib import Path

from launcher.sky.setup.accounts import credentials_here
from trainer.config.clouds import CLOUDS


def test_a_file_of_each_cloud(tmp_path: Path) -> None:
    assert set(credentials_here(tmp_path, {}).values()) == {None}
    for cloud in CLOUDS.values():
        path = tmp_path / cloud.credentials
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert credentials_here(tmp_path, {}) == {name: tmp_path / cloud.credentials for name, cloud in CLOUDS.items()}


def test_the_environment_counts_as_it_does_for_skypilot(tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("{}")
    environment = {"AWS_ACCESS_KEY_ID": "x", "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
    found = credentials_here(tmp_path / "home", environment)
    assert {name for name, path in found.items() if path is not None} == {"aws", "gcp"}
