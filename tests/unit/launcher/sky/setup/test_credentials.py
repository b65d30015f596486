"""Which credential files travel to rented machines (tests/integration/test_sky_identity.py asks SkyPilot itself)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from ruamel.yaml import YAML

from launcher.errors import RequestError
from launcher.findings import Finding
from launcher.sky.setup.credentials import (
    Mounted,
    ask_skypilot,
    copied_files_note,
    describe_files,
    mounted_credentials,
    safe_remote_identity,
)
from launcher.sky.setup.doctor import examine, fix

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


AWS, GCP = Mounted("aws", ("~/.aws/credentials",)), Mounted("gcp", ("~/gcp", "~/gcp2"))
LAMBDA, VAST, HUB = Mounted("lambda", ("~/lambda",)), Mounted("vast", ("~/vast",)), Mounted("storage", ("~/hub",))
CONFIG = Path("config.yaml")


def test_files_that_are_there_travel_unless_their_cloud_keeps_them(home: Path) -> None:
    assert mounted_credentials({}) == [Mounted("gcp", ("~/gcp",)), Mounted("lambda", ("~/lambda",))]
    assert mounted_credentials({"gcp": {"remote_identity": "NO_UPLOAD"}}) == [Mounted("lambda", ("~/lambda",))]
    for word in ("SERVICE_ACCOUNT", "no_upload"):  # of GCP's own machines only
        assert len(mounted_credentials({"gcp": {"remote_identity": word}})) == 2, word
    assert len(mounted_credentials({"gcp": None, "lambda": []})) == 2


def test_what_can_be_kept_here_without_breaking_anything() -> None:
    everything = [AWS, GCP, LAMBDA, VAST, HUB]
    assert safe_remote_identity(CONFIG, CONSOLIDATED, everything) == {"aws": "NO_UPLOAD", "gcp": "NO_UPLOAD"}
    assert safe_remote_identity(CONFIG, CONSOLIDATED, [LAMBDA, VAST]) == {}, "their machines end themselves with them"
    chosen = {**CONSOLIDATED, "gcp": {"remote_identity": "LOCAL_CREDENTIALS"}, "aws": {"vpc_name": "x"}}
    assert safe_remote_identity(CONFIG, chosen, everything) == {"aws": "NO_UPLOAD"}
    slip = {**CONSOLIDATED, "gcp": {"remote_identity": "no_upload"}}
    assert safe_remote_identity(CONFIG, slip, [GCP]) == {"gcp": "NO_UPLOAD"}, "SkyPilot knows it in capitals only"
    with pytest.raises(RequestError, match="gcp must be a mapping"):
        safe_remote_identity(CONFIG, {**CONSOLIDATED, "gcp": "x"}, [GCP])


@pytest.mark.parametrize("mode", [None, False, "no"])
def test_the_vm_of_a_controller_rents_machines_with_these_files(mode: object) -> None:
    config = {"jobs": {"controller": {"consolidation_mode": mode}}}
    assert safe_remote_identity(CONFIG, config, [AWS, GCP]) == {}


def written(home: Path, text: str) -> Path:
    path = home / ".sky/config.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def files(home: Path, mounted: list[Mounted] | None, **environment: str) -> list[Finding]:
    return [found for found in examine(home, environment, mounted) if found.what == "credential files"]


def test_the_doctor_shows_what_travels_and_what_would_keep_it_here(tmp_path: Path) -> None:
    written(tmp_path, "jobs: {controller: {consolidation_mode: yes}}\n")
    first, rest = files(tmp_path, [AWS, GCP, LAMBDA, VAST, HUB])
    assert (
        first.detail
        == "SkyPilot copies ~/.aws/credentials and 2 more (aws, gcp) to every machine that it rents, in any cloud"
    )
    assert (first.state, first.fix) == ("note", "notus-launch doctor --fix")
    assert "~/lambda and 2 more (lambda, vast, storage)" in rest.detail
    assert "lambda, storage: SkyPilot has no setting for that" in rest.fix
    assert "vast: a machine there needs them to terminate itself if the controller is gone" in rest.fix
    written(tmp_path, "jobs: {controller: {consolidation_mode: yes}}\naws: {remote_identity: LOCAL_CREDENTIALS}\n")
    (chosen,) = files(tmp_path, [AWS])
    assert f"aws: set in {tmp_path}" in chosen.fix
    assert "config.yaml: " in chosen.fix
    written(tmp_path, "jobs: {controller: {consolidation_mode: no}}\n")
    (needed,) = files(tmp_path, [AWS])
    assert "aws: the controller's VM rents machines with them" in needed.fix
    written(tmp_path, "jobs: {controller: {consolidation_mode: no}}\naws: {remote_identity: NO_UPLOAD}\n")
    (lacking,) = files(tmp_path, [AWS])
    assert "the controller's VM gets none of aws" in lacking.detail


def test_the_doctor_says_when_nothing_travels_or_nobody_knows(tmp_path: Path) -> None:
    (found,) = files(tmp_path, [])
    assert (found.state, found.fix) == ("ok", "")
    (found,) = files(tmp_path, None)
    assert found.state == "note"
    assert "could not report" in found.detail
    assert files(tmp_path, [AWS], SKYPILOT_API_SERVER_ENDPOINT="http://team") == [], "another machine's files"


def test_fix_keeps_here_what_no_machine_needs_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, "gcp:\n  project_id: mine  # of the team\n")
    mounted = [AWS, GCP, LAMBDA, VAST, HUB]
    done = fix(tmp_path, {}, mounted)
    assert len([line for line in done if "remote_identity" in line]) == 2
    config = YAML(typ="safe").load(path.read_text())
    assert config.pop("jobs") == {"controller": {"consolidation_mode": True}}
    assert config == {
        "gcp": {"project_id": "mine", "remote_identity": "NO_UPLOAD"},
        "aws": {"remote_identity": "NO_UPLOAD"},
    }
    assert "# of the team" in path.read_text()
    assert fix(tmp_path, {}, mounted) == []
    (left,) = files(tmp_path, mounted)
    assert "(lambda, vast, storage)" in left.detail


@pytest.mark.parametrize("remote", [True, False])
def test_fix_leaves_the_files_of_a_controllers_vm_and_of_a_remote_server_alone(tmp_path: Path, remote: bool) -> None:
    mode = "yes" if remote else "no"
    path = written(tmp_path, f"jobs: {{controller: {{consolidation_mode: {mode}}}}}\n")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = {"SKYPILOT_API_SERVER_ENDPOINT": "http://team"} if remote else {}
    with mock.patch("launcher.sky.setup.controller_wheel.find", lambda folder: folder):
        assert fix(tmp_path, environment, [AWS, GCP])
    assert "remote_identity" not in path.read_text()


def test_skypilot_is_asked_in_a_process_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["timeout"] < 120
        assert words[-1] == "launcher.sky.setup.credentials"
        return subprocess.CompletedProcess(words, 0, 'a word of a cloud\n[["aws", ["~/.aws/credentials"]]]\n', "")

    monkeypatch.setattr(subprocess, "run", answers)
    assert ask_skypilot() == [AWS]


@pytest.mark.parametrize(
    "trouble", [subprocess.TimeoutExpired("python", 60), subprocess.CalledProcessError(1, "python"), OSError("no"), ""]
)
def test_a_skypilot_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch, trouble: Exception | str) -> None:
    def fails(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if isinstance(trouble, Exception):
            raise trouble
        return subprocess.CompletedProcess(words, 0, trouble, "")

    monkeypatch.setattr(subprocess, "run", fails)
    assert ask_skypilot() is None


def test_a_launch_says_it_in_one_line(home: Path) -> None:
    path = written(home, "jobs: {controller: {consolidation_mode: true}}\n")
    said = copied_files_note(home, {})
    assert "copies ~/gcp and 1 more (gcp, lambda) to every machine" in said
    assert said.endswith("notus-launch doctor --fix keeps those of gcp here")
    assert copied_files_note(home, {"SKYPILOT_API_SERVER_ENDPOINT": "http://team"}) == "", "another machine's files"
    (home / "gcp").unlink()
    assert copied_files_note(home, {}).endswith("see docs/how-to/real-cloud.md")
    (home / "lambda").unlink()
    assert copied_files_note(home, {}) == ""
    path.write_text("a: [")
    assert copied_files_note(home, {}) == "", "a launch doesn't fail for it"
    assert describe_files([]) == ""
