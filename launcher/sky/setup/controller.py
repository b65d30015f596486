"""SkyPilot's jobs controller: where it runs, and what it needs to load the NOTUS strategy there."""

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
    "while this machine sleeps or is off, deadline and budget are not enforced, rented machines keep costing money, "
    "and a preempted run resumes only when it wakes"
)
KEEP_AWAKE = (
    "keep it awake (`caffeinate -i` on a Mac, `systemd-inhibit sleep infinity` on Linux), or run the controller "
    "elsewhere: docs/how-to/remote-controller.md"
)


def find_controller(home: Path, environment: Mapping[str, str]) -> Finding:
    """Where the controller runs, and whether it has the strategy. A VM is chosen explicitly in the configuration.

    Raises `RequestError` for settings that can't be read.
    """
    path = config_file(home, environment)
    config = read(path)
    mode = mode_of(path, config)
    if has_remote_server(path, config, environment):
        return Finding("controller", "note", "set by the remote API server's own configuration")
    if mode:
        return Finding("controller", "ok", "inside the API server on this machine: no VM is needed")
    if mode is None:
        return Finding("controller", "missing", "SkyPilot would rent a VM for its jobs controller", FIX)
    where = f"on its own VM, as set in {path}"
    if plugin_is_configured(home, environment) and (lacking := _lacking_there(home, environment)):
        return Finding("controller", "missing", f"{where}, but {lacking}", FIX)
    return Finding("controller", "note", where)


def sleeps_with_this_machine(home: Path, environment: Mapping[str, str]) -> bool:
    """Does the controller, which enforces deadline and budget, stop when this machine sleeps?"""
    path = config_file(home, environment)
    config = read(path)
    return bool(mode_of(path, config)) and not has_remote_server(path, config, environment)


def wants_own_vm(home: Path, environment: Mapping[str, str]) -> bool:
    """Has the user configured a VM for the controller?"""
    path = config_file(home, environment)
    config = read(path)
    return mode_of(path, config) is False and not has_remote_server(path, config, environment)


def mode_of(path: Path, config: Mapping[str, Any]) -> bool | None:
    """Does the controller run in the API server? None = not configured, and SkyPilot uses a VM."""
    return flag_of(path, section(path, config, *MODE[:-1]), MODE[-1])


def has_remote_server(path: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Is the API server on another machine?"""
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
    """What prevents SkyPilot from loading this strategy on a controller's VM; '' if nothing."""
    path, remote = plugins_file(home, environment), remote_plugins_file(home, environment)
    folder = wheels_folder(home, path, read(path))
    if folder is None or not names_plugin(remote, read(remote)):
        return "it won't have the NOTUS strategy"
    if controller_wheel.find(folder) is None:
        return f"{folder} lacks the wheel of this code to install there, or also has older ones"
    return ""
