"""What a launch needs from this machine: SkyPilot, its plugin configuration, consolidation mode, cloud credentials.

Reads and writes SkyPilot's files only; asks no cloud and starts no server.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from launcher.errors import RequestError
from launcher.request import CLOUDS

SKYPILOT = "0.14.1"
"""The strategy overrides methods of exactly this version."""
PLUGIN = "launcher.sky.plugin.NotusPlugin"

State = Literal["ok", "missing", "note"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    state: State
    detail: str
    fix: str = ""


def examine(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Everything, in the order in which a user would fix it."""
    clouds = _clouds(home, environment)
    return [_skypilot(), _plugin(home, environment), _controller(home, environment, clouds), *clouds]


def plugin_is_configured(home: Path, environment: Mapping[str, str]) -> bool:
    """Will a local API server load the NOTUS strategy at its next start?"""
    plugins = _read(plugins_file(home, environment)).get("plugins") or []
    return any(isinstance(entry, dict) and entry.get("class") == PLUGIN for entry in plugins)


def plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads its plugins from."""
    given = environment.get("SKYPILOT_SERVER_PLUGINS_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/plugins.yaml"


def config_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads its settings from."""
    given = environment.get("SKYPILOT_GLOBAL_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/config.yaml"


def fix(home: Path, environment: Mapping[str, str]) -> list[str]:
    """Write plugin and consolidation mode into SkyPilot's files, leaving the rest as it is; returns what was done."""
    done = []
    if not plugin_is_configured(home, environment):
        path = plugins_file(home, environment)
        config = _read(path)
        config["plugins"] = [*(config.get("plugins") or []), {"class": PLUGIN}]
        _write(path, config)
        done.append(f"added the NOTUS strategy to {path}")
    path = config_file(home, environment)
    config = _read(path)
    if "consolidation_mode" not in _controller_settings(config):
        jobs = config.setdefault("jobs", {})
        jobs.setdefault("controller", {})["consolidation_mode"] = True
        _write(path, config)
        done.append(f"set consolidation mode in {path}")
    return done


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
    return Finding("NOTUS strategy", "missing", f"not in {path}", "notus-launch doctor --fix")


def _controller(home: Path, environment: Mapping[str, str], clouds: list[Finding]) -> Finding:
    found = find_controller(home, environment)
    usable = {finding.what for finding in clouds if finding.state == "ok"}
    hosts = {traits.label for traits in CLOUDS.values() if traits.hosts_controller}
    if found.state == "note" and usable and not usable & hosts:
        return Finding(
            "controller",
            "missing",
            f"a VM of its own is wanted, and {', '.join(sorted(usable))} can't host one",
            "set consolidation_mode: true in ~/.sky/config.yaml",
        )
    return found


def find_controller(home: Path, environment: Mapping[str, str]) -> Finding:
    """Where jobs are looked after, and whether the strategy is there. A user who chose a VM has written it down."""
    path = config_file(home, environment)
    config = _read(path)
    settings = _controller_settings(config)
    if settings.get("consolidation_mode"):
        return Finding("controller", "ok", "inside the API server: no VM is paid for it")
    if environment.get("SKYPILOT_API_SERVER_ENDPOINT") or (config.get("api_server") or {}).get("endpoint"):
        return Finding("controller", "note", "as the remote API server's own settings say")
    if "consolidation_mode" not in settings:
        return Finding(
            "controller", "missing", "SkyPilot would pay a VM for its jobs controller", "notus-launch doctor --fix"
        )
    if plugin_is_configured(home, environment) and not _remote_plugin(home, environment):
        return Finding(
            "controller",
            "missing",
            f"on a VM of its own, as {path} says, and the NOTUS strategy won't be there",
            f"set consolidation_mode: true in {path}, or see docs/how-to/remote-controller.md",
        )
    return Finding("controller", "note", f"on a VM of its own, as {path} says")


def _controller_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return (config.get("jobs") or {}).get("controller") or {}


def _remote_plugin(home: Path, environment: Mapping[str, str]) -> bool:
    """Will SkyPilot install our wheel on a controller's VM, and load the strategy there?"""
    given = environment.get("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG")
    remote = _read(Path(given).expanduser() if given else home / ".sky/remote_plugins.yaml").get("plugins") or []
    wheels = _read(plugins_file(home, environment)).get("controller_wheel_path")
    return bool(wheels) and any(isinstance(entry, dict) and entry.get("class") == PLUGIN for entry in remote)


def _clouds(home: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Where SkyPilot looks for each cloud's credentials. Which of them work, `sky check` says."""
    google = environment.get("GOOGLE_APPLICATION_CREDENTIALS")
    places = {
        "lambda": home / ".lambda_cloud/lambda_keys",
        "gcp": Path(google) if google else home / ".config/gcloud/application_default_credentials.json",
        "aws": home / ".aws/credentials",
        "runpod": home / ".runpod/config.toml",
        "nebius": home / ".nebius/credentials.json",
        "vast": home / ".config/vastai/vast_api_key",
    }
    found = []
    for name, path in places.items():
        there = path.exists() or (name == "aws" and bool(environment.get("AWS_ACCESS_KEY_ID")))
        found.append(Finding(CLOUDS[name].label, "ok" if there else "note", str(path) if there else "no credentials"))
    if not any(finding.state == "ok" for finding in found):
        found.append(Finding("clouds", "missing", "no cloud has credentials", "set one up, then: sky check"))
    return found


def _read(path: Path) -> dict[str, Any]:
    """A YAML mapping; {} where there is no file. Raises `RequestError` for one that can't be read: it isn't ours."""
    try:
        data = YAML().load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, YAMLError) as error:
        raise RequestError(
            f"{path} can't be read: {str(error).splitlines()[0]}", "repair it, or move it away"
        ) from error
    if data is not None and not isinstance(data, dict):
        raise RequestError(f"{path} is not a mapping", "repair it, or move it away")
    return data or {}


def _write(path: Path, config: dict[str, Any]) -> None:
    """Keeps comments and order of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    YAML().dump(config, stream)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(stream.getvalue())
    temporary.replace(path)
