"""Check what a launch needs on this machine: SkyPilot, its plugin configuration, consolidation mode, cloud credentials.

It only reads and writes SkyPilot's files, and builds our wheel for a controller's VM; it contacts no cloud and starts
no server. The caller determines which credential files SkyPilot finds here (`ask_skypilot`), which takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.errors import RequestError
from launcher.findings import Finding
from launcher.sky.setup import controller_wheel
from launcher.sky.setup.accounts import credentials_here
from launcher.sky.setup.controller import (
    ASLEEP,
    FIX,
    KEEP_AWAKE,
    MODE,
    PLUGIN,
    find_controller,
    has_remote_server,
    mode_of,
    names_plugin,
    plugin_is_configured,
    sleeps_with_this_machine,
    wants_own_vm,
    wheels_folder,
)
from launcher.sky.setup.credentials import KEY, Mounted, examine_credentials, safe_remote_identity
from launcher.sky.setup.settings import config_file, plugins_file, remote_plugins_file
from launcher.sky.setup.settings_edit import Draft
from trainer.config.clouds import CLOUDS

SKYPILOT = "0.14.1"
"""The strategy overrides methods of exactly this version."""
WHEELS = ".sky/notus-wheels"
"""Our folder below the home folder, if the user has not configured a folder of wheels for SkyPilot."""


def examine(home: Path, environment: Mapping[str, str], mounted: Sequence[Mounted] | None = None) -> list[Finding]:
    """All findings, in the order in which a user would fix them. Raises `RequestError` for unreadable settings.

    `mounted` are the existing credential files; None = SkyPilot could not be queried.
    """
    clouds = _clouds(home, environment)
    controller = _controller(home, environment, clouds)
    files = examine_credentials(home, environment, mounted)
    return [_skypilot(), _plugin(home, environment), controller, *_asleep(home, environment), *clouds, *files]


def fix(home: Path, environment: Mapping[str, str], mounted: Sequence[Mounted] | None = None) -> list[str]:
    """Configure plugin and controller in SkyPilot's files, leaving the rest unchanged; returns what was done.

    The controller runs in the API server (consolidation mode), unless the user configured a VM: then our wheel is built
    for it. Of the `mounted` credential files, those that no rented machine needs are kept here. Raises `RequestError`
    with nothing written.
    """
    draft, folder = Draft(), None
    done = _add_plugin(draft, plugins_file(home, environment))
    path = config_file(home, environment)
    config = draft.document(path)
    remote = has_remote_server(path, config.config, environment)
    mode = mode_of(path, config.config)
    if mode is None:
        config.put(MODE, True)
        done.append(f"set consolidation mode in {path}")
    elif not mode and not remote:
        folder, more = _want_own_vm(draft, home, environment)
        done += more
    if not remote:
        for cloud, word in safe_remote_identity(path, config.config, mounted or ()).items():
            config.put((cloud, KEY), word)
            done.append(f"set {cloud}.{KEY} to {word} in {path}: SkyPilot no longer copies credential files of {cloud}")

    def build() -> None:
        if folder is not None and controller_wheel.find(folder) is None:
            done.append(f"built {_built(folder)}")

    draft.save(build)
    return done


def _want_own_vm(draft: Draft, home: Path, environment: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Configure SkyPilot to load the strategy on the controller's VM; returns the folder for our wheel."""
    done = []
    path = plugins_file(home, environment)
    plugins = draft.document(path)
    folder = wheels_folder(home, path, plugins.config)
    if folder is None:
        folder = home / WHEELS
        plugins.put(("controller_wheel_path",), str(folder))
        done.append(f"set the folder of wheels to {folder} in {path}")
    return folder, done + _add_plugin(draft, remote_plugins_file(home, environment))


def _built(folder: Path) -> Path:
    try:
        return controller_wheel.build(folder)
    except OSError as error:
        raise RequestError(
            f"no wheel can be put into {folder}: {error.strerror or error}; nothing was changed", "make it writable"
        ) from error


def _add_plugin(draft: Draft, path: Path) -> list[str]:
    """Add the plugin if it is missing; returns what was done."""
    plugins = draft.document(path)
    if names_plugin(path, plugins.config):
        return []
    plugins.append("plugins", {"class": PLUGIN})
    return [f"added the NOTUS strategy to {path}"]


def _skypilot() -> Finding:
    try:
        installed = version("skypilot")
    except PackageNotFoundError:
        return Finding("SkyPilot", "missing", "not installed", "pip install 'notus-launch[launcher]'")
    if installed != SKYPILOT:
        return Finding(
            "SkyPilot", "missing", f"{installed}; the strategy requires {SKYPILOT}", f"pip install skypilot=={SKYPILOT}"
        )
    return Finding("SkyPilot", "ok", installed)


def _plugin(home: Path, environment: Mapping[str, str]) -> Finding:
    path = plugins_file(home, environment)
    if environment.get("SKYPILOT_API_SERVER_ENDPOINT"):
        return Finding(
            "NOTUS strategy", "note", "the API server is remote: it needs the plugin in its own plugins.yaml",
            "see docs/how-to/remote-controller.md",
        )  # fmt: skip
    if plugin_is_configured(home, environment):
        return Finding("NOTUS strategy", "ok", str(path))
    return Finding("NOTUS strategy", "missing", f"not in {path}", FIX)


def _controller(home: Path, environment: Mapping[str, str], clouds: list[Finding]) -> Finding:
    finding = find_controller(home, environment)
    usable = {finding.what for finding in clouds if finding.state == "ok"}
    hosts = {traits.label for traits in CLOUDS.values() if traits.hosts_controller}
    if finding.state == "note" and wants_own_vm(home, environment) and usable and not usable & hosts:
        return Finding(
            "controller",
            "missing",
            f"its own VM is configured, but {', '.join(sorted(usable))} can't host one",
            "set consolidation_mode: true in ~/.sky/config.yaml",
        )
    return finding


def _asleep(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    if not sleeps_with_this_machine(home, environment):
        return []
    return [Finding("a sleeping laptop", "note", ASLEEP, KEEP_AWAKE)]


def _clouds(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Whether each cloud has credentials on this machine."""
    findings = [
        Finding(CLOUDS[name].label, "ok" if path else "note", str(path) if path else "no credentials")
        for name, path in credentials_here(home, environment).items()
    ]
    if not any(finding.state == "ok" for finding in findings):
        findings.append(Finding("clouds", "missing", "no cloud has credentials", "set one up, then: sky check"))
    return findings
