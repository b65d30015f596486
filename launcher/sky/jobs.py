"""Determine which run a SkyPilot job belongs to, from the job itself. Pure, except for SkyPilot's own YAML reader.

SkyPilot 0.14.1 keeps two relevant fields of a job (`sky.jobs.queue_v2`): `user_yaml`, the task as written, and
`entrypoint`, the command line that submitted it. `--env` on that command line overrides values of the file and is *not*
in `user_yaml` (tested), so both must be read. What can't be determined is not guessed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from launcher.run_identity import RunIdentity, run_identity

SUBMISSION = "NOTUS_SUBMISSION"
"""A unique id per submission: a job with this id was submitted by that `notus-launch` call."""
LAUNCH = "NOTUS_LAUNCH"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
MARKS = frozenset({"NOTUS_BUCKET", "NOTUS_RUN", "NOTUS_RECIPE"})
"""A task with none of these is not one of ours."""


class JobOrigin(NamedTuple):
    """The run that a job belongs to."""

    kind: Literal["run", "foreign", "unclear"]
    """One of our runs, an unrelated task, or a task of ours whose run can't be determined."""
    run: RunIdentity | None = None
    submission: str = ""


FOREIGN, UNCLEAR = JobOrigin("foreign"), JobOrigin("unclear")


def origin_of(user_yaml: str | None, entrypoint: str | None) -> JobOrigin:
    """The run of a job with this task and this command line."""
    tasks = _tasks(user_yaml)
    if tasks is None:
        return UNCLEAR
    if not any(MARKS & {*task.written, *task.secrets} for task in tasks) and not _mentions_us(entrypoint):
        return FOREIGN
    if len(tasks) != 1:
        return UNCLEAR  # a pipeline: we can't know which of its tasks is meant
    (task,) = tasks
    environment = _with_overrides(task.written, entrypoint)
    if environment is None or {*MARKS, *ENDPOINTS} & {*task.secrets, *_secrets_given(entrypoint)}:
        return UNCLEAR
    bucket, run = environment.get("NOTUS_BUCKET"), environment.get("NOTUS_RUN")
    if not bucket or not run:
        return UNCLEAR
    endpoint = next((environment[name] for name in ENDPOINTS if environment.get(name)), "")
    return JobOrigin("run", run_identity(bucket, run, endpoint), environment.get(SUBMISSION, ""))


class _Task(NamedTuple):
    written: dict[str, str]
    """The environment variables in the file that have a value."""
    secrets: frozenset[str]


def _tasks(user_yaml: str | None) -> list[_Task] | None:
    """The tasks in the file; None if it can't be read."""
    import yaml  # SkyPilot's own reader: others read some words differently

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
    """The values as SkyPilot passes them to the job."""
    return {str(name): str(value) for name, value in envs.items() if value is not None}


def _with_overrides(written: Mapping[str, str], entrypoint: str | None) -> dict[str, str] | None:
    """The job's environment; None if the command line may have overridden it in a way that can't be seen."""
    words = _words(entrypoint)
    if words is None:
        return None
    if PurePath(words[0]).name != "sky":
        # Our own command sends the task unchanged. A user's script may have changed it after reading it.
        ours = SUBMISSION in written or any(PurePath(word).name == "notus-launch" for word in words)
        return dict(written) if ours else None
    if any(word.split("=", 1)[0] in ("--env-file", "--secret-file") for word in words):
        return None
    given = dict(_assigned(word) for word in _values(words, "--env"))
    return None if None in given.values() else {**written, **{name: value or "" for name, value in given.items()}}


def _assigned(word: str) -> tuple[str, str | None]:
    """Parse `NAME=value`; the value of `NAME` alone came from an environment that is gone."""
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
    """The values of a repeatable option: `--env A=1 --env=B=2`."""
    values = [after for word, after in pairwise(words) if word == option]
    return values + [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]
