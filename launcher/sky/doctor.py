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
    return [_skypilot(), _plugin(home, environment), _controller(home, clouds), *clouds]


def plugin_is_configured(home: Path, environment: Mapping[str, str]) -> bool:
    """Will a local API server load the NOTUS strategy at its next start?"""
    plugins = _read(plugins_file(home, environment)).get("plugins") or []
    return any(isinstance(entry, dict) and entry.get("class") == PLUGIN for entry in plugins)


def plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads its plugins from."""
    given = environment.get("SKYPILOT_SERVER_PLUGINS_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/plugins.yaml"


def fix(home: Path, environment: Mapping[str, str]) -> list[str]:
    """Write plugin and consolidation mode into SkyPilot's files, leaving the rest as it is; returns what was done."""
    done = []
    if not plugin_is_configured(home, environment):
        path = plugins_file(home, environment)
        config = _read(path)
        config["plugins"] = [*(config.get("plugins") or []), {"class": PLUGIN}]
        _write(path, config)
        done.append(f"added the NOTUS strategy to {path}")
    if _consolidation(home).state == "missing":
        path = home / ".sky/config.yaml"
        config = _read(path)
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


def _controller(home: Path, clouds: list[Finding]) -> Finding:
    found = _consolidation(home)
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


def _consolidation(home: Path) -> Finding:
    """Without it SkyPilot pays a VM for the controller. A user who chose that has written it down."""
    controller = (_read(home / ".sky/config.yaml").get("jobs") or {}).get("controller") or {}
    if "consolidation_mode" not in controller:
        return Finding(
            "controller", "missing", "SkyPilot would pay a VM for its jobs controller", "notus-launch doctor --fix"
        )
    if controller["consolidation_mode"]:
        return Finding("controller", "ok", "inside the API server: no VM is paid for it")
    return Finding("controller", "note", "on a VM of its own, as ~/.sky/config.yaml says; it needs the plugin there")


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
