"""The doctor: what it finds in an empty home, what it writes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from launcher.errors import RequestError
from launcher.sky.doctor import PLUGIN, examine, find_controller, fix, plugin_is_configured


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


def test_a_controller_that_was_chosen_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    assert states(tmp_path)["controller"] == "note", "nobody asked for our strategy there"
    fix(tmp_path, {})
    assert states(tmp_path)["controller"] == "missing", "the strategy, on that VM"
    assert "false" in (tmp_path / ".sky/config.yaml").read_text()


def test_a_remote_controller_with_wheel_and_plugin_is_fine(tmp_path: Path) -> None:
    sky = tmp_path / ".sky"
    sky.mkdir()
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    (sky / "plugins.yaml").write_text(f"controller_wheel_path: ~/wheels\nplugins: [{{class: {PLUGIN}}}]\n")
    assert states(tmp_path)["controller"] == "missing"
    (sky / "remote_plugins.yaml").write_text(f"plugins: [{{class: {PLUGIN}}}]\n")
    assert states(tmp_path)["controller"] == "note"


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
