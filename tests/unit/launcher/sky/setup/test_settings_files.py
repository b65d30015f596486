"""SkyPilot's files in every state that users leave them in: changed as asked, or named and left alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from launcher.errors import RequestError
from launcher.sky.setup import doctor, settings_edit
from launcher.sky.setup.controller import find_controller, plugin_is_configured, sleeps_with_this_machine
from launcher.sky.setup.doctor import examine, fix
from launcher.sky.setup.settings_edit import Draft


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    folder = tmp_path / ".sky"
    folder.mkdir()
    return folder


def plain(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8-sig"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing but this\n",
        "jobs:\n",
        "jobs:\n  # controller:\n  #   resources: {cpus: 4}\n",
        "jobs:\n  controller:\n",
        "jobs: {controller: }\n",
        "jobs: {controller: {}}\n",
        "jobs:\n  controller:\n    consolidation_mode:\n",
        "jobs:\n  bucket: s3://mine  # ours\n",
        "{}\n",
        "---\n",
        "null\n",
        "api_server:\n",
        "gcp: {project: p}\n",
    ],
)
def test_an_empty_section_is_filled(text: str, sky: Path, tmp_path: Path) -> None:
    (sky / "config.yaml").write_text(text)
    fix(tmp_path, {})
    after = (sky / "config.yaml").read_text()
    assert plain(sky / "config.yaml")["jobs"]["controller"]["consolidation_mode"] is True
    for line in text.splitlines():
        assert "#" not in line or line.strip().rpartition("#")[2] in after, "a comment is the user's"
    assert find_controller(tmp_path, {}).state == "ok"
    assert fix(tmp_path, {}) == []


@pytest.mark.parametrize("text", ["plugins:\n", "plugins: []\n", "# plugins: later\n", "plugins: ~\n"])
def test_an_empty_list_of_plugins_is_filled(text: str, sky: Path, tmp_path: Path) -> None:
    (sky / "plugins.yaml").write_text(text)
    fix(tmp_path, {})
    assert plugin_is_configured(tmp_path, {})


BAD_CONFIG: list[tuple[bytes, str]] = [
    (b"jobs: []\n", "jobs must be a mapping, but is a list"),
    (b"jobs: 3\n", "jobs must be a mapping, but is 3"),
    (b"jobs: {controller: []}\n", "jobs.controller must be a mapping, but is a list"),
    (b"jobs: {controller: vm}\n", "jobs.controller must be a mapping, but is 'vm'"),
    (b"jobs: {controller: {consolidation_mode: 3}}\n", "consolidation_mode must be true or false"),
    (b"jobs: {controller: {consolidation_mode: [true]}}\n", "consolidation_mode must be true or false"),
    *(
        (f"jobs: {{controller: {{consolidation_mode: {text}}}}}\n".encode(), "must be true or false, but is")
        for text in ("'true'", '"true"', "'on'", "y", "n", "tRUE", "'false'")
    ),
    (b"jobs:\n  controller:\n    consolidation_mode: |-\n      yes\n", "must be true or false, but is 'yes'"),
    (b"api_server: http://x\n", "api_server must be a mapping, but is 'http://x'"),
    (b"api_server: {endpoint: [http://x]}\n", "endpoint must be a string, but is a list"),
    (b"# caf\xe9\n", "config.yaml:1 is not UTF-8"),
    (b"a: 1\nb: \xff\n", "config.yaml:2 is not UTF-8"),
    (b"- a\n", "is not a mapping"),
    (b"text\n", "is not a mapping"),
    (b"a: [unfinished\n", "can't be read"),
    (b"a: 1\na: 2\n", "can't be read"),
    (b"a: 2001-99-99\n", "can't be read"),
    (b"a: *nowhere\n", "can't be read"),
    (b"a: 1\n---\nb: 2\n", "can't be read"),
    (b"\x00\n", "can't be read"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONFIG)
def test_a_config_that_is_wrong_is_named_and_nothing_is_written(
    content: bytes, message: str, sky: Path, tmp_path: Path
) -> None:
    (sky / "config.yaml").write_bytes(content)
    for act in (fix, examine, find_controller):
        with pytest.raises(RequestError) as caught:
            act(tmp_path, {})
        assert message in caught.value.message
        assert str(sky / "config.yaml") in caught.value.message
        assert caught.value.hint
        assert caught.value.exit_code == 2
    assert contents(tmp_path) == {".sky/config.yaml": content}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"plugins: 3\n", "plugins must be a list, but is 3"),
        (b"plugins: {class: x}\n", "plugins must be a list, but is a mapping"),
        (b"plugins: launcher.sky.plugin.NotusPlugin\n", "plugins must be a list"),
        (b"[]\n", "is not a mapping"),
        (b"\xe9: 1\n", "plugins.yaml:1 is not UTF-8"),
    ],
)
def test_plugins_that_are_wrong_are_named_and_nothing_is_written(
    content: bytes, message: str, sky: Path, tmp_path: Path
) -> None:
    (sky / "plugins.yaml").write_bytes(content)
    for act in (fix, examine, plugin_is_configured):
        with pytest.raises(RequestError) as caught:
            act(tmp_path, {})
        assert message in caught.value.message
    assert contents(tmp_path) == {".sky/plugins.yaml": content}


def test_a_wheel_path_that_is_no_text_is_named(sky: Path, tmp_path: Path) -> None:
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    (sky / "plugins.yaml").write_text("controller_wheel_path: 3\n")
    with pytest.raises(RequestError, match="controller_wheel_path must be a string, but is 3"):
        fix(tmp_path, {})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["jobs", "controller", "consolidation_mode", "api_server", "endpoint", "plugins", "class", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(config=anything, plugins=anything)
def test_whatever_the_files_hold_the_fix_works_or_writes_nothing(
    config: Any, plugins: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / ".sky").mkdir()
    for name, value in (("config", config), ("plugins", plugins)):
        with (home / f".sky/{name}.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(value, file)
    before = contents(home)
    try:
        fix(home, {"SKYPILOT_API_SERVER_ENDPOINT": "http://x"})  # without a wheel to build
    except RequestError:
        assert contents(home) == before
    else:
        assert plugin_is_configured(home, {})
        assert fix(home, {"SKYPILOT_API_SERVER_ENDPOINT": "http://x"}) == []


@pytest.mark.parametrize(("word", "state"), [("yes", "ok"), ("on", "ok"), ("no", "note"), ("off", "note")])
def test_the_booleans_of_yaml_1_1_are_skypilots(word: str, state: str, sky: Path, tmp_path: Path) -> None:
    (sky / "config.yaml").write_text(f"jobs: {{controller: {{consolidation_mode: {word}}}}}\n")
    assert find_controller(tmp_path, {}).state == state


def test_mode_and_owner_stay(sky: Path, tmp_path: Path) -> None:
    path = sky / "config.yaml"
    path.write_text("api_server: {service_account_token: sky_SECRET}\n")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 1234, 5678)
    before = path.stat()
    fix(tmp_path, {})
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o600
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "it was not written in place"


def test_a_symbolic_link_stays_and_its_target_is_written(sky: Path, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "sky.yaml").write_text("gcp: {project: p}\n")
    (dotfiles / "sky.yaml").chmod(0o640)
    (dotfiles / "link").symlink_to("sky.yaml")
    (sky / "config.yaml").symlink_to("../dotfiles/link")
    (sky / "plugins.yaml").symlink_to(tmp_path / "later/plugins.yaml")  # not there yet
    fix(tmp_path, {})
    assert (sky / "config.yaml").is_symlink()
    assert (dotfiles / "link").is_symlink()
    assert plain(dotfiles / "sky.yaml")["jobs"]["controller"]["consolidation_mode"] is True
    assert stat.S_IMODE((dotfiles / "sky.yaml").stat().st_mode) == 0o640
    assert (sky / "plugins.yaml").is_symlink()
    assert plugin_is_configured(tmp_path, {})
    assert sorted(path.name for path in dotfiles.iterdir()) == ["link", "sky.yaml"], "nothing is left beside it"


@pytest.mark.parametrize("name", ["config.yaml", "plugins.yaml"])
def test_what_is_not_a_file_is_named(name: str, sky: Path, tmp_path: Path) -> None:
    (sky / name).mkdir()
    with pytest.raises(RequestError, match=name):
        fix(tmp_path, {})
    (sky / name).rmdir()
    os.mkfifo(sky / name)
    with pytest.raises(RequestError, match=f"{name} is not a regular file"):
        fix(tmp_path, {})
    (sky / name).unlink()
    (sky / name).symlink_to(name)
    with pytest.raises(RequestError, match=name):
        fix(tmp_path, {})
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["config.yaml", "plugins.yaml"])
@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "/dev/tty", "/dev/random"])
def test_a_device_is_never_read_to_its_end(device: str, name: str, sky: Path, tmp_path: Path) -> None:
    (sky / name).symlink_to(device)
    for act in (fix, examine):
        with pytest.raises(RequestError, match=f"{name} is not a regular file"):
            act(tmp_path, {})
    with pytest.raises(RequestError, match="is not a regular file"):
        find_controller(tmp_path, {"SKYPILOT_GLOBAL_CONFIG": device})


def test_the_null_device_is_read_and_never_replaced(tmp_path: Path) -> None:
    nowhere = {"SKYPILOT_GLOBAL_CONFIG": os.devnull}
    assert find_controller(tmp_path, nowhere).state == "missing"
    with pytest.raises(RequestError, match="not a regular file; nothing was changed"):
        fix(tmp_path, nowhere)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    assert contents(tmp_path) == {}
    assert not (tmp_path / ".sky").exists(), "a folder that was made for nothing is gone again"


def test_hard_links_are_not_cut(sky: Path, tmp_path: Path) -> None:
    (tmp_path / "original").write_text("gcp: {project: p}\n")
    (sky / "config.yaml").hardlink_to(tmp_path / "original")
    with pytest.raises(RequestError, match="several hard links"):
        fix(tmp_path, {})
    assert not (sky / "plugins.yaml").exists()


def test_a_folder_that_cannot_be_made_is_named() -> None:
    with pytest.raises(RequestError, match=r"/proc/\.sky/.*can't be written: .*; nothing was changed"):
        fix(Path("/proc"), {})


def test_a_write_protected_file_is_left_alone(sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sky / "config.yaml").write_text("gcp: {project: p}\n")
    monkeypatch.setattr(settings_edit.os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(RequestError, match=r"config\.yaml can't be written: it is write-protected"):
        fix(tmp_path, {})
    assert contents(tmp_path) == {".sky/config.yaml": b"gcp: {project: p}\n"}


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_rename_that_fails_leaves_all_files_as_they_were(
    failing: int, sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sky / "config.yaml").write_text("gcp: {project: p}\n")
    before, replace, calls = contents(tmp_path), Path.replace, []

    def fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    if failing <= 2:  # a file each; later ones are what brings the first back
        with pytest.raises(RequestError, match="Device or resource busy"):
            fix(tmp_path, {})
        assert contents(tmp_path) == before
    else:
        fix(tmp_path, {})
        assert len(calls) == 2


def test_a_wheel_that_cannot_be_put_into_its_folder_changes_nothing(
    sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    before = contents(tmp_path)

    def full(folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor.controller_wheel, "build", full)
    with pytest.raises(RequestError, match="No space left on device; nothing was changed"):
        fix(tmp_path, {})
    assert contents(tmp_path) == before


def test_byte_order_mark_line_ends_and_long_lines_stay(sky: Path, tmp_path: Path) -> None:
    long = "x" * 60 + " " + "y" * 60
    before = f"\ufeffgcp:\r\n  note: {long}\r\n  quoted: 'p'  # mine\r\n"
    (sky / "config.yaml").write_bytes(before.encode())
    fix(tmp_path, {})
    after = (sky / "config.yaml").read_bytes().decode()
    assert after.startswith(before)
    assert after.count("\n") == after.count("\r\n")
    assert plain(sky / "config.yaml")["jobs"]["controller"]["consolidation_mode"] is True


def test_an_anchor_through_which_two_sections_are_one_is_not_changed(sky: Path, tmp_path: Path) -> None:
    (sky / "config.yaml").write_text("jobs: &same\n  controller: &c {}\nserve: *same\n")
    with pytest.raises(RequestError, match="can't be changed safely"):
        fix(tmp_path, {})
    assert not (sky / "plugins.yaml").exists()


def test_a_draft_reads_each_file_once(tmp_path: Path) -> None:
    draft = Draft()
    assert draft.document(tmp_path / "x.yaml") is draft.document(tmp_path / "x.yaml")
    draft.save(lambda: None)
    assert contents(tmp_path) == {}, "nothing was asked for"


def test_a_sleeping_laptop_is_a_finding_where_the_controller_lives_on_it(sky: Path, tmp_path: Path) -> None:
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: true}}\n")
    (found,) = [finding for finding in examine(tmp_path, {}) if finding.what == "a sleeping laptop"]
    assert "deadline and budget are not enforced, rented machines keep costing money" in found.detail
    assert "caffeinate" in found.fix
    assert "systemd-inhibit" in found.fix
    assert "remote-controller.md" in found.fix
    for environment in ({"SKYPILOT_API_SERVER_ENDPOINT": "http://x"},):
        assert not sleeps_with_this_machine(tmp_path, environment)
    (sky / "config.yaml").write_text("jobs: {controller: {consolidation_mode: false}}\n")
    assert not sleeps_with_this_machine(tmp_path, {})
