"""The doctor: what it finds in an empty home, what it writes, and what it leaves alone."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from launcher.errors import RequestError
from launcher.sky.setup import controller_wheel, release_wheel
from launcher.sky.setup.controller import PLUGIN, find_controller, plugin_is_configured
from launcher.sky.setup.doctor import examine, fix
from tests.support.paths import ROOT


def states(home: Path) -> dict[str, str]:
    return {finding.what: finding.state for finding in examine(home, {})}


def test_an_empty_home_lacks_the_plugin_the_controller_and_every_cloud(tmp_path: Path) -> None:
    found = states(tmp_path)
    assert found["SkyPilot"] == "ok"
    assert found["NOTUS strategy"] == found["controller"] == found["clouds"] == "missing"


def test_fix_writes_both_files_once(tmp_path: Path) -> None:
    assert len(fix(tmp_path, {})) == 2
    assert fix(tmp_path, {}) == []
    found = states(tmp_path)
    assert found["NOTUS strategy"] == found["controller"] == "ok"
    assert plugin_is_configured(tmp_path, {})


def test_fix_keeps_what_the_user_has_written(tmp_path: Path) -> None:
    sky = tmp_path / ".sky"
    sky.mkdir()
    (sky / "config.yaml").write_text("# mine\ngcp:\n  project: p  # the cheap one\n")
    (sky / "plugins.yaml").write_text("plugins:\n  - class: other.Plugin\n    parameters: {a: 1}\n")
    fix(tmp_path, {})
    text = (sky / "config.yaml").read_text()
    assert "# mine" in text
    assert "# the cheap one" in text
    assert YAML(typ="safe").load(text)["jobs"]["controller"]["consolidation_mode"] is True
    plugins = YAML(typ="safe").load((sky / "plugins.yaml").read_text())["plugins"]
    assert [plugin["class"] for plugin in plugins] == ["other.Plugin", PLUGIN]


class FakePip:
    """In pip's place: makes an empty wheel of the right name, or says that it can't."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def wheel(self, what: str, folder: Path) -> None:
        self.asked.append(what)
        (folder / "notus_launch-0.1.0-py3-none-any.whl").write_text(f"wheel {len(self.asked)}")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(controller_wheel, "pip_wheel", fake.wheel)
    return fake


@pytest.fixture
def own_vm(tmp_path: Path, pip: FakePip) -> Path:
    """SkyPilot's folder of a user who wants a VM for the controller."""
    sky = tmp_path / ".sky"
    sky.mkdir()
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    return sky


def plain(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(path.read_text())
    return found


def test_a_controller_on_a_vm_gets_what_skypilot_needs_to_install_the_strategy_there(
    own_vm: Path, tmp_path: Path, pip: FakePip
) -> None:
    assert states(tmp_path)["controller"] == "note", "nobody asked for our strategy there"
    assert len(fix(tmp_path, {})) == 4
    folder = own_vm / "notus-wheels"
    assert plain(own_vm / "plugins.yaml") == {"plugins": [{"class": PLUGIN}], "controller_wheel_path": str(folder)}
    assert plain(own_vm / "remote_plugins.yaml") == {"plugins": [{"class": PLUGIN}]}
    assert [path.read_text() for path in folder.iterdir()] == ["wheel 1"]
    assert pip.asked == [str(ROOT)]
    assert plain(own_vm / "config.yaml")["jobs"]["controller"]["consolidation_mode"] is False, "the user's choice"
    assert states(tmp_path)["controller"] == "note", "all is there"
    assert fix(tmp_path, {}) == []


def test_the_users_own_plugins_and_wheels_stay(own_vm: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "wheels/other-1.0-py3-none-any.whl"
    theirs.parent.mkdir()
    theirs.touch()
    (own_vm / "plugins.yaml").write_text("controller_wheel_path: ~/wheels  # of our team\n")
    (own_vm / "remote_plugins.yaml").write_text("plugins:\n  - class: other.Plugin  # theirs\n")
    fix(tmp_path, {})
    assert "~/wheels  # of our team" in (own_vm / "plugins.yaml").read_text()
    assert "# theirs" in (own_vm / "remote_plugins.yaml").read_text()
    assert [one["class"] for one in plain(own_vm / "remote_plugins.yaml")["plugins"]] == ["other.Plugin", PLUGIN]
    assert theirs.exists()
    assert len(list((tmp_path / "wheels").glob("notus_launch-*.whl"))) == 1
    assert not (own_vm / "notus-wheels").exists()


def test_the_remote_plugin_file_that_the_environment_names_counts(own_vm: Path, tmp_path: Path) -> None:
    elsewhere = {"SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG": str(tmp_path / "elsewhere.yaml")}
    fix(tmp_path, elsewhere)
    assert find_controller(tmp_path, elsewhere).state == "note"
    assert find_controller(tmp_path, {}).state == "missing"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working tree that the code is said to run from."""
    tree = tmp_path / "tree"
    for folder in ("launcher", "trainer", "checkpoints"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "__init__.py").touch()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (tree / name).touch()
    monkeypatch.setattr(controller_wheel, "find_checkout", lambda: tree)
    return tree


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the code is said to be installed."""
    site = tmp_path / "site-packages"
    for package in release_wheel.PACKAGES:
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").touch()
    (site / "launcher/one.py").write_text("ONE = 1\n")
    monkeypatch.setattr(release_wheel, "launcher", SimpleNamespace(__file__=str(site / "launcher/__init__.py")))
    monkeypatch.setattr(controller_wheel, "find_checkout", lambda: None)
    return site


def test_a_changed_checkout_has_a_wheel_of_another_name(own_vm: Path, checkout: Path, tmp_path: Path) -> None:
    """SkyPilot installs none on a living controller whose name it has installed already."""
    fix(tmp_path, {})
    (first,) = (own_vm / "notus-wheels").iterdir()
    assert re.fullmatch(r"notus_launch-0\.1\.0-0h[0-9a-f]{12}-py3-none-any\.whl", first.name)
    (checkout / "launcher/__pycache__").mkdir()
    (checkout / "launcher/__pycache__/x.pyc").touch()
    assert fix(tmp_path, {}) == [], "the same code"
    (checkout / "launcher/new.py").touch()
    assert states(tmp_path)["controller"] == "missing"
    assert len(fix(tmp_path, {})) == 1
    (second,) = (own_vm / "notus-wheels").iterdir()
    assert second.name != first.name
    assert states(tmp_path)["controller"] == "note"


def test_an_installed_release_is_packed_from_what_is_installed(
    own_vm: Path, tmp_path: Path, pip: FakePip, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix(tmp_path, {})
    assert pip.asked == [], "the index has no say in what our own name is"
    (made,) = (own_vm / "notus-wheels").iterdir()
    assert re.fullmatch(r"notus_launch-[0-9.]+-0h[0-9a-f]{12}-py3-none-any\.whl", made.name)
    with zipfile.ZipFile(made) as packed:
        assert packed.read("launcher/one.py") == b"ONE = 1\n"
    assert fix(tmp_path, {}) == []
    (release / "launcher/one.py").write_text("ONE = 2\n")
    assert states(tmp_path)["controller"] == "missing", "other files are installed now"


def test_a_wheel_that_cannot_be_made_is_an_error_with_pips_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    said = "ERROR: no versions\nERROR: No matching distribution found for notus-launch\n"
    monkeypatch.setattr(
        controller_wheel.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", said)
    )
    with pytest.raises(RequestError, match="No matching distribution found"):
        fix(tmp_path, {})
    assert sorted(path.name for path in (tmp_path / ".sky").iterdir()) == ["config.yaml"], "nothing is half done"


def test_the_settings_file_that_the_environment_names_counts(tmp_path: Path) -> None:
    elsewhere = {"SKYPILOT_GLOBAL_CONFIG": str(tmp_path / "elsewhere.yaml")}
    fix(tmp_path, elsewhere)
    assert find_controller(tmp_path, elsewhere).state == "ok"
    assert find_controller(tmp_path, {}).state == "missing"


def test_a_remote_servers_controller_is_its_own_business(tmp_path: Path) -> None:
    assert find_controller(tmp_path, {"SKYPILOT_API_SERVER_ENDPOINT": "https://sky.example"}).state == "note"


def test_a_controller_that_no_cloud_can_host_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    (tmp_path / ".lambda_cloud").mkdir()
    (tmp_path / ".lambda_cloud/lambda_keys").touch()
    assert states(tmp_path)["controller"] == "missing"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").touch()
    assert states(tmp_path)["controller"] == "note"


def test_a_broken_file_is_named_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/plugins.yaml").write_text("plugins: [unfinished\n")
    with pytest.raises(RequestError, match=r"plugins\.yaml can't be read"):
        fix(tmp_path, {})
    assert (tmp_path / ".sky/plugins.yaml").read_text() == "plugins: [unfinished\n"


def test_the_plugin_file_that_the_environment_names_counts(tmp_path: Path) -> None:
    elsewhere = {"SKYPILOT_SERVER_PLUGINS_CONFIG": str(tmp_path / "elsewhere.yaml")}
    fix(tmp_path, elsewhere)
    assert plugin_is_configured(tmp_path, elsewhere)
    assert not plugin_is_configured(tmp_path, {})


def test_a_remote_api_server_is_said_to_need_its_own_plugin(tmp_path: Path) -> None:
    found = examine(tmp_path, {"SKYPILOT_API_SERVER_ENDPOINT": "https://sky.example"})
    assert {finding.what: finding.state for finding in found}["NOTUS strategy"] == "note"
