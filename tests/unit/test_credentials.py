"""Which credential files travel to rented machines (tests/integration/test_sky_identity.py asks SkyPilot itself)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from launcher.sky.credentials import Mounted, in_words, mounted_credentials, remark, safe_remote_identity

CONSOLIDATED = {"jobs": {"controller": {"consolidation_mode": True}}}


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """With keys of two clouds, and a SkyPilot that knows three."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("gcp", "lambda"):
        (tmp_path / name).write_text("key")
    clouds = {
        name: SimpleNamespace(get_credential_file_mounts=lambda name=name: {f"~/{name}": f"~/{name}"})
        for name in ("gcp", "lambda", "vast")
    }
    modules: dict[str, Any] = {
        name: ModuleType(name) for name in ("sky", "sky.utils", "sky.check", "sky.utils.registry")
    }
    modules["sky"].check = modules["sky.check"]
    modules["sky.check"].get_cloud_credential_file_mounts = lambda excluded: {}
    modules["sky.utils"].registry = modules["sky.utils.registry"]
    modules["sky.utils.registry"].CLOUD_REGISTRY = clouds
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return tmp_path


def test_files_that_are_there_travel_unless_their_cloud_keeps_them(home: Path) -> None:
    assert mounted_credentials({}) == [Mounted("gcp", ("~/gcp",)), Mounted("lambda", ("~/lambda",))]
    assert mounted_credentials({"gcp": {"remote_identity": "no_upload"}}) == [Mounted("lambda", ("~/lambda",))]
    assert mounted_credentials({"gcp": {"remote_identity": "SERVICE_ACCOUNT"}}) != [Mounted("lambda", ("~/lambda",))], (
        "that keeps them off GCP's own machines only"
    )


def test_what_can_be_kept_here_without_breaking_anything() -> None:
    everything = dict.fromkeys(("aws", "azure", "gcp", "nebius", "oci", "vast"), "NO_UPLOAD")
    assert safe_remote_identity(CONSOLIDATED) == everything
    used = safe_remote_identity(CONSOLIDATED, ["gcp", "vast", "lambda"])
    assert used == {name: value for name, value in everything.items() if name != "vast"}, "its machines end themselves"
    chosen = {**CONSOLIDATED, "gcp": {"remote_identity": "LOCAL_CREDENTIALS"}, "aws": {"vpc_name": "x"}}
    assert "gcp" not in safe_remote_identity(chosen)
    assert safe_remote_identity(chosen)["aws"] == "NO_UPLOAD"
    assert safe_remote_identity({}) == {}, "a controller's VM rents machines with these files"


def test_a_launch_says_it_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".sky").mkdir()
    (home / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    said = remark(home, {})
    assert "copies ~/gcp and 1 more (gcp, lambda) to every machine" in said
    assert "notus-launch doctor" in said
    assert remark(home, {"SKYPILOT_API_SERVER_ENDPOINT": "http://team"}) == "", "another machine's files"
    (home / "gcp").unlink()
    (home / "lambda").unlink()
    assert remark(home, {}) == ""
    (home / ".sky/config.yaml").write_text("a: [")
    assert remark(home, {}) == "", "a launch doesn't fail for it"
    assert in_words([]) == ""
