"""What a launch needs from this machine: SkyPilot, its plugin configuration, consolidation mode, cloud credentials.

Reads and writes SkyPilot's files only, and builds our wheel for a controller's VM; asks no cloud and starts no server.
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
from launcher.sky import wheel

SKYPILOT = "0.14.1"
"""The strategy overrides methods of exactly this version."""
PLUGIN = "launcher.sky.plugin.NotusPlugin"
WHEELS = ".sky/notus-wheels"
"""Below the home folder: ours, where the user has no folder of wheels for SkyPilot yet."""

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
    return _names_plugin(_read(plugins_file(home, environment)))


def plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads its plugins from."""
    given = environment.get("SKYPILOT_SERVER_PLUGINS_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/plugins.yaml"


def config_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads its settings from."""
    given = environment.get("SKYPILOT_GLOBAL_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/config.yaml"


def remote_plugins_file(home: Path, environment: Mapping[str, str]) -> Path:
    """Where SkyPilot reads the plugins that it loads on a controller's VM."""
    given = environment.get("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG")
    return Path(given).expanduser() if given else home / ".sky/remote_plugins.yaml"


def fix(home: Path, environment: Mapping[str, str]) -> list[str]:
    """Write plugin and controller into SkyPilot's files, leaving the rest as it is; returns what was done.

    The controller goes into the API server (consolidation mode), unless the user wants a VM for it: then our wheel is
    built for that one.
    """
    done = []
    if _add_plugin(plugins_file(home, environment)):
        done.append(f"added the NOTUS strategy to {plugins_file(home, environment)}")
    path = config_file(home, environment)
    config = _read(path)
    if "consolidation_mode" not in _controller_settings(config):
        jobs = config.setdefault("jobs", {})
        jobs.setdefault("controller", {})["consolidation_mode"] = True
        _write(path, config)
        done.append(f"set consolidation mode in {path}")
    elif _has_own_vm(config, environment):
        done += _fix_own_vm(home, environment)
    return done


def _fix_own_vm(home: Path, environment: Mapping[str, str]) -> list[str]:
    """What SkyPilot needs to install our wheel on the controller's VM, and to load the strategy there."""
    done = []
    path = plugins_file(home, environment)
    folder = _wheels(home, environment)
    if folder is None:
        folder = home / WHEELS
        config = _read(path)
        config["controller_wheel_path"] = str(folder)
        _write(path, config)
        done.append(f"named the folder of wheels {folder} in {path}")
    if wheel.find(folder) is None:
        done.append(f"built {wheel.build(folder)}")
    if _add_plugin(path := remote_plugins_file(home, environment)):
        done.append(f"added the NOTUS strategy to {path}")
    return done


def _add_plugin(path: Path) -> bool:
    """Returns whether it was not there yet."""
    config = _read(path)
    if _names_plugin(config):
        return False
    config["plugins"] = [*(config.get("plugins") or []), {"class": PLUGIN}]
    _write(path, config)
    return True


def _names_plugin(config: Mapping[str, Any]) -> bool:
    return any(isinstance(entry, dict) and entry.get("class") == PLUGIN for entry in config.get("plugins") or [])


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
    if _has_remote_server(config, environment):
        return Finding("controller", "note", "as the remote API server's own settings say")
    if "consolidation_mode" not in settings:
        return Finding(
            "controller", "missing", "SkyPilot would pay a VM for its jobs controller", "notus-launch doctor --fix"
        )
    where = f"on a VM of its own, as {path} says"
    if plugin_is_configured(home, environment) and (lacking := _lacking_there(home, environment)):
        return Finding("controller", "missing", f"{where}, and {lacking}", "notus-launch doctor --fix")
    return Finding("controller", "note", where)


def _controller_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return (config.get("jobs") or {}).get("controller") or {}


def _has_remote_server(config: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    return bool(environment.get("SKYPILOT_API_SERVER_ENDPOINT") or (config.get("api_server") or {}).get("endpoint"))


def _has_own_vm(config: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Does the user want that, in so many words?"""
    consolidated = _controller_settings(config).get("consolidation_mode", True)
    return not consolidated and not _has_remote_server(config, environment)


def _lacking_there(home: Path, environment: Mapping[str, str]) -> str:
    """What keeps SkyPilot from loading this very strategy on a controller's VM; '' if nothing."""
    folder = _wheels(home, environment)
    if folder is None or not _names_plugin(_read(remote_plugins_file(home, environment))):
        return "the NOTUS strategy won't be there"
    if wheel.find(folder) is None:
        return f"the wheel of this code, to install there, is not in {folder}, or older ones are there too"
    return ""


def _wheels(home: Path, environment: Mapping[str, str]) -> Path | None:
    """The folder whose wheels SkyPilot installs on a controller's VM, if one is named."""
    given = _read(plugins_file(home, environment)).get("controller_wheel_path")
    if not given:
        return None
    return home / given[2:] if given.startswith("~/") else Path(given)


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
