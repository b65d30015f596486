"""Which run a job of SkyPilot's belongs to, by what the job itself tells. Pure, but for SkyPilot's own YAML reader.

SkyPilot 0.14.1 keeps two things of a job that can be asked for (`sky.jobs.queue_v2`): `user_yaml`, the task as it was
written, and `entrypoint`, the command line that submitted it. `--env` on that command line replaces values of the file
and is *not* in `user_yaml` (run), so both have to be read. What can't be told is not guessed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from launcher.run_identity import RunIdentity, run_identity

SUBMISSION = "NOTUS_SUBMISSION"
"""An id made for one submission: a job that has it was submitted by `notus-launch`, and by that very launch."""
LAUNCH = "NOTUS_LAUNCH"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
MARKS = frozenset({"NOTUS_BUCKET", "NOTUS_RUN", "NOTUS_RECIPE"})
"""A task without any of them is not one of ours."""


class Told(NamedTuple):
    """What a job tells of itself."""

    kind: Literal["run", "foreign", "unclear"]
    """A run of ours; a task that has nothing to do with us; or one of ours that doesn't tell which run."""
    run: RunIdentity | None = None
    submission: str = ""


FOREIGN, UNCLEAR = Told("foreign"), Told("unclear")


def told_by(user_yaml: str | None, entrypoint: str | None) -> Told:
    """Which run the job of this task and this command line is for."""
    tasks = _tasks(user_yaml)
    if tasks is None:
        return UNCLEAR
    if not any(MARKS & {*task.written, *task.secrets} for task in tasks) and not _mentions_us(entrypoint):
        return FOREIGN
    if len(tasks) != 1:
        return UNCLEAR  # a pipeline: which of its tasks is meant is not for us to guess
    (task,) = tasks
    environment = _with_overrides(task.written, entrypoint)
    if environment is None or {*MARKS, *ENDPOINTS} & {*task.secrets, *_secrets_given(entrypoint)}:
        return UNCLEAR
    bucket, run = environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if not bucket or not run:
        return UNCLEAR
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "")
    return Told("run", run_identity(bucket, run, endpoint), environment.get(SUBMISSION, ""))


class _Task(NamedTuple):
    written: dict[str, str]
    """The environment in the file; without those that the file leaves open."""
    secrets: frozenset[str]


def _tasks(user_yaml: str | None) -> list[_Task] | None:
    """None where it can't be read."""
    import yaml  # SkyPilot's own reader: another one reads some words otherwise

    if not user_yaml:
        return None
    try:
        documents = list(yaml.safe_load_all(user_yaml))
    except yaml.YAMLError:
        return None
    tasks = [one for one in documents if isinstance(one, dict) and set(one) - {"name", "execution"}]
    if not tasks or any(not isinstance(one.get("envs") or {}, dict) for one in tasks):
        return None
    return [_Task(_texts(one.get("envs") or {}), frozenset(map(str, one.get("secrets") or ()))) for one in tasks]


def _texts(envs: Mapping[Any, Any]) -> dict[str, str]:
    """As SkyPilot hands them to the job."""
    return {str(name): str(value) for name, value in envs.items() if value is not None}


def _with_overrides(written: Mapping[str, str], entrypoint: str | None) -> dict[str, str] | None:
    """The job's environment; None where the command line may have replaced it in a way that it doesn't show."""
    words = _words(entrypoint)
    if words is None:
        return None
    if PurePath(words[0]).name != "sky":
        # Our own command sends the task as it is. A script of somebody's may have changed it after reading it.
        ours = SUBMISSION in written or any(PurePath(word).name == "notus-launch" for word in words)
        return dict(written) if ours else None
    if any(word.split("=", 1)[0] in ("--env-file", "--secret-file") for word in words):
        return None
    given = dict(_assigned(word) for word in _values(words, "--env"))
    return None if None in given.values() else {**written, **{name: value or "" for name, value in given.items()}}


def _assigned(word: str) -> tuple[str, str | None]:
    """`NAME=value`; `NAME` alone takes its value from an environment that nobody sees any more."""
    name, separator, value = word.partition("=")
    return name, value if separator else None


def _secrets_given(entrypoint: str | None) -> set[str]:
    words = _words(entrypoint) or []
    return {word.split("=", 1)[0] for word in _values(words, "--secret")}


def _mentions_us(entrypoint: str | None) -> bool:
    words = _words(entrypoint) or []
    return any(word.split("=", 1)[0] in MARKS for word in _values(words, "--env"))


def _words(entrypoint: str | None) -> list[str] | None:
    try:
        return shlex.split(entrypoint or "") or None
    except ValueError:
        return None


def _values(words: Sequence[str], option: str) -> list[str]:
    """What an option that may be repeated was given: `--env A=1 --env=B=2`."""
    found = [after for word, after in pairwise(words) if word == option]
    return found + [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
