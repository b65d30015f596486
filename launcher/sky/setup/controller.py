"""SkyPilot's jobs controller: where it lives, and what it needs to have the NOTUS strategy there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.findings import Finding
from launcher.sky.setup import controller_wheel
from launcher.sky.setup.settings import (
    config_file,
    flag_of,
    items,
    plugins_file,
    read,
    remote_plugins_file,
    section,
    text_of,
)

PLUGIN = "launcher.sky.plugin.NotusPlugin"
MODE = ("jobs", "controller", "consolidation_mode")
FIX = "notus-launch doctor --fix"

ASLEEP = (
    "while this machine sleeps or is off, no deadline and no budget is kept, rented machines are paid on, and a "
    "preempted run goes on only when it wakes"
)
KEEP_AWAKE = (
    "keep it awake (`caffeinate -i` on a Mac, `systemd-inhibit sleep infinity` on Linux), or let the controller live "
    "elsewhere: docs/how-to/remote-controller.md"
)


def find_controller(home: Path, environment: Mapping[str, str]) -> Finding:
    """Where jobs are looked after, and whether the strategy is there. A user who chose a VM has written it down.

    Raises `RequestError` for settings that can't be read.
    """
    path = config_file(home, environment)
    config = read(path)
    mode = mode_of(path, config)
    if has_remote_server(path, config, environment):
        return Finding("controller", "note", "as the remote API server's own settings say")
    if mode:
        return Finding("controller", "ok", "inside the API server on this machine: no VM is paid for it")
    if mode is None:
        return Finding("controller", "missing", "SkyPilot would pay a VM for its jobs controller", FIX)
    where = f"on a VM of its own, as {path} says"
    if plugin_is_configured(home, environment) and (lacking := _lacking_there(home, environment)):
        return Finding("controller", "missing", f"{where}, and {lacking}", FIX)
    return Finding("controller", "note", where)


def sleeps_with_this_machine(home: Path, environment: Mapping[str, str]) -> bool:
    """Does the controller, which keeps deadline and budget, stop when this machine sleeps?"""
    path = config_file(home, environment)
    config = read(path)
    return bool(mode_of(path, config)) and not has_remote_server(path, config, environment)


def wants_own_vm(home: Path, environment: Mapping[str, str]) -> bool:
    """Has the user written down that the controller gets a VM of its own?"""
    path = config_file(home, environment)
    config = read(path)
    return mode_of(path, config) is False and not has_remote_server(path, config, environment)


def mode_of(path: Path, config: Mapping[str, Any]) -> bool | None:
    """Does the controller live in the API server? None = nobody has written it down, and SkyPilot takes a VM."""
    return flag_of(path, section(path, config, *MODE[:-1]), MODE[-1])


def has_remote_server(path: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Is the API server another machine's?"""
    named = text_of(path, section(path, config, "api_server"), "endpoint")
    return bool(environment.get("SKYPILOT_API_SERVER_ENDPOINT") or named)


def plugin_is_configured(home: Path, environment: Mapping[str, str]) -> bool:
    """Will a local API server load the NOTUS strategy at its next start? Raises `RequestError`."""
    path = plugins_file(home, environment)
    return names_plugin(path, read(path))


def names_plugin(path: Path, config: Mapping[str, Any]) -> bool:
    """Is the NOTUS strategy among the plugins of this file?"""
    return any(isinstance(one, Mapping) and one.get("class") == PLUGIN for one in items(path, config, "plugins"))


def wheels_folder(home: Path, path: Path, config: Mapping[str, Any]) -> Path | None:
    """The folder whose wheels SkyPilot installs on a controller's VM, if the plugins file names one."""
    given = text_of(path, config, "controller_wheel_path")
    if not given:
        return None
    return home / given[2:] if given.startswith("~/") else Path(given)


def _lacking_there(home: Path, environment: Mapping[str, str]) -> str:
    """What keeps SkyPilot from loading this very strategy on a controller's VM; '' if nothing."""
    path, remote = plugins_file(home, environment), remote_plugins_file(home, environment)
    folder = wheels_folder(home, path, read(path))
    if folder is None or not names_plugin(remote, read(remote)):
        return "the NOTUS strategy won't be there"
    if controller_wheel.find(folder) is None:
        return f"the wheel of this code, to install there, is not in {folder}, or older ones are there too"
    return ""
