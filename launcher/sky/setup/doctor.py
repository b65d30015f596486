"""What a launch needs from this machine: SkyPilot, its plugin configuration, consolidation mode, cloud credentials.

Reads and writes SkyPilot's files only, and builds our wheel for a controller's VM; asks no cloud and starts no server.
Which credential files SkyPilot finds here is for the caller to ask (`ask_skypilot`): that takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.errors import RequestError
from launcher.findings import Finding
from launcher.sky.setup import controller_wheel
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
"""Below the home folder: ours, where the user has no folder of wheels for SkyPilot yet."""


def examine(home: Path, environment: Mapping[str, str], mounted: Sequence[Mounted] | None = None) -> list[Finding]:
    """Everything, in the order in which a user would fix it. Raises `RequestError` for settings that can't be read.

    `mounted` are the credential files that are here; None = SkyPilot could not be asked.
    """
    clouds = _clouds(home, environment)
    controller = _controller(home, environment, clouds)
    files = examine_credentials(home, environment, mounted)
    return [_skypilot(), _plugin(home, environment), controller, *_asleep(home, environment), *clouds, *files]


def fix(home: Path, environment: Mapping[str, str], mounted: Sequence[Mounted] | None = None) -> list[str]:
    """Write plugin and controller into SkyPilot's files, leaving the rest as it is; returns what was done.

    The controller goes into the API server (consolidation mode), unless the user wants a VM for it: then our wheel is
    built for that one. Of the credential files that are `mounted`, those that no rented machine needs are kept here.
    Raises `RequestError` with nothing written.
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
            done.append(
                f"set {cloud}.{KEY} to {word} in {path}: SkyPilot copies no credential file of {cloud} any more"
            )

    def build() -> None:
        if folder is not None and controller_wheel.find(folder) is None:
            done.append(f"built {_built(folder)}")

    draft.save(build)
    return done


def _want_own_vm(draft: Draft, home: Path, environment: Mapping[str, str]) -> tuple[Path, list[str]]:
    """What SkyPilot needs to load the strategy on the controller's VM, and the folder for our wheel."""
    done = []
    path = plugins_file(home, environment)
    plugins = draft.document(path)
    folder = wheels_folder(home, path, plugins.config)
    if folder is None:
        folder = home / WHEELS
        plugins.put(("controller_wheel_path",), str(folder))
        done.append(f"named the folder of wheels {folder} in {path}")
    return folder, done + _add_plugin(draft, remote_plugins_file(home, environment))


def _built(folder: Path) -> Path:
    try:
        return controller_wheel.build(folder)
    except OSError as error:
        raise RequestError(
            f"no wheel can be put into {folder}: {error.strerror or error}; nothing was changed", "make it writable"
        ) from error


def _add_plugin(draft: Draft, path: Path) -> list[str]:
    """What was done: nothing where the plugin is there already."""
    plugins = draft.document(path)
    if names_plugin(path, plugins.config):
        return []
    plugins.append("plugins", {"class": PLUGIN})
    return [f"added the NOTUS strategy to {path}"]


def _skypilot() -> Finding:
    try:
        found = version("skypilot")
    except PackageNotFoundError:
        return Finding("SkyPilot", "missing", "not installed", "pip install 'notus-launch[launcher]'")
    if found != SKYPILOT:
        return Finding(
            "SkyPilot", "missing", f"{found}; the strategy is made for {SKYPILOT}", f"pip install skypilot=={SKYPILOT}"
        )
    return Finding("SkyPilot", "ok", found)


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
    found = find_controller(home, environment)
    usable = {finding.what for finding in clouds if finding.state == "ok"}
    hosts = {traits.label for traits in CLOUDS.values() if traits.hosts_controller}
    if found.state == "note" and wants_own_vm(home, environment) and usable and not usable & hosts:
        return Finding(
            "controller",
            "missing",
            f"a VM of its own is wanted, and {', '.join(sorted(usable))} can't host one",
            "set consolidation_mode: true in ~/.sky/config.yaml",
        )
    return found


def _asleep(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    if not sleeps_with_this_machine(home, environment):
        return []
    return [Finding("a sleeping laptop", "note", ASLEEP, KEEP_AWAKE)]


def _clouds(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Where SkyPilot looks for each cloud's credentials. Which of them work, `sky check` says."""
    google = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    found = []
    for name, cloud in CLOUDS.items():
        path = Path(google) if google and name == "gcp" else home / cloud.credentials
        there = _exists(path) or (name == "aws" and bool(environment.get("AWS_ACCESS_KEY_ID")))
        found.append(Finding(cloud.label, "ok" if there else "note", str(path) if there else "no credentials"))
    if not any(finding.state == "ok" for finding in found):
        found.append(Finding("clouds", "missing", "no cloud has credentials", "set one up, then: sky check"))
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that may not be looked into is no credentials of this user's
        return False
