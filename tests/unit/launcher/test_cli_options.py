"""Every option of the four commands, with wild values: a number out of bounds is a clear line and exit code 2."""

from __future__ import annotations

import importlib
import io
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.cli import app as ckpt
from checkpoints.errors import UserError
from checkpoints.storage.backend import open_store
from checkpoints.util.command_line import run_app
from checkpoints.util.environment import number_of
from launcher.catalog.gpu_nodes import parse_gpus
from launcher.cli import app as launch
from launcher.commands import inspect_runs as look_story
from launcher.commands import launch_local as launch_story
from launcher.commands import stop_run as stop_story
from launcher.commands.launch_local import LocalOptions
from launcher.errors import RequestError
from launcher.policy.limits import limits_of
from launcher.request import LaunchRequest, parse_deadline, parse_hazard
from trainer.checkpointing.save_interval import HOURS_TO_PREEMPTION, hours_to_preemption
from trainer.config.recipe import load_recipe
from trainer.curation.cli import app as data
from trainer.errors import RecipeError
from trainer.main import app as train
from trainer.runtime.attempt_dir import Outcome

NOW = datetime(2026, 11, 24, 20, tzinfo=UTC)
APPS = {"notus-launch": launch, "notus-ckpt": ckpt, "notus-train": train, "notus-data": data}

WILD = (
    *("nan", "-nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "0", "-0", "-1", "0.0", "1e999", "0x10", "1_0", "٣"),
    *("", " ", "\udcff", "9" * 30, "9" * 5000, "-" + "9" * 5000),
    *("0h", "0.0001m", "99999999d", "9000000d", "9" * 400 + "d", "0001-01-01", "9999-12-31T23:59-12:00", "1d1d"),
    *("A100:0", "A100:-1", "A100:" + "9" * 5000, "A100:1e3", ":8", "json", "tiny-dpo", "gcp", "local", "s3://x/y"),
)

BEYOND_PARSING = {
    "launcher.commands.launch_local.launch_local": 0,
    "launcher.commands.dry_run.plan_only": 0,
    "launcher.commands.launch_cloud.launch_cloud": 0,
    "launcher.commands.inspect_runs.show_status": None,
    "launcher.commands.inspect_runs.print_logs": None,
    "launcher.commands.inspect_runs.show_report": None,
    "launcher.commands.inspect_runs.show_doctor": 0,
    "launcher.commands.stop_run.stop_run": 0,
    "launcher.commands.prices.prices": 0,
    "launcher.commands.replay_trace.simulate": 0,
    "trainer.main._attempt": Outcome(kind="finished"),
    "trainer.curation.pipeline.curate_files": {},
    "trainer.curation.pipeline.as_text": "",
}
"""What the commands call once their options are good, and what it returns here."""


def words() -> list[tuple[str, ...]]:
    """Each command and each of its subcommands, as the words that call it."""
    found: list[tuple[str, ...]] = []
    for name, app in APPS.items():
        command = typer.main.get_command(app)
        if name in ("notus-launch", "notus-train"):
            found.append((name,))
        found += [(name, sub) for sub in getattr(command, "commands", {})]
    return found


def options_of(command: tuple[str, ...]) -> list[str]:
    """The long options that take a value."""
    found = typer.main.get_command(APPS[command[0]])
    for word in command[1:]:
        found = found.commands[word]  # type: ignore[attr-defined]
    return [
        max(one.opts, key=len) for one in found.params if one.opts[0].startswith("-") and not getattr(one, "is_flag", 0)
    ]


COMMANDS = [command for command in words() if options_of(command)]


def run(name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose options are all that it does."""
    with ExitStack() as stack:
        for path, value in BEYOND_PARSING.items():
            module, _, function = path.rpartition(".")
            stack.enter_context(mock.patch.object(importlib.import_module(module), function, return_value=value))
        stack.enter_context(mock.patch.object(sys, "argv", [name, *arguments]))
        # --scratch=anything makes a folder here.
        stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
        stack.enter_context(redirect_stdout(io.StringIO()))
        errors = stack.enter_context(redirect_stderr(io.StringIO()))
        with pytest.raises(SystemExit) as caught:
            run_app(APPS[name], name)
    code = caught.value.code
    return code if isinstance(code, int) else 0, errors.getvalue()


@settings(max_examples=150)
@given(picked=st.data())
def test_no_value_of_any_option_is_a_traceback(picked: st.DataObject) -> None:
    command = picked.draw(st.sampled_from(COMMANDS))
    values = st.one_of(st.sampled_from(WILD), st.text(st.characters(exclude_characters="\0"), max_size=20))
    given_ = picked.draw(st.lists(st.tuples(st.sampled_from(options_of(command)), values), min_size=1, max_size=4))
    arguments = [f"{option}={value}" for option, value in given_]
    required = {
        "notus-train": ["tiny-dpo", "--run=r", "--bucket=/tmp"],
        "notus-data": ["/no/such/file.jsonl", "--out=/no/such/out"],
        "notus-ckpt": ["/no/such/folder", *(["/no/such/out"] if command[-1] in ("pull", "export") else [])],
    }.get(command[0], ["a-run"] if command[-1] in ("logs", "report", "stop", "status") else [])
    code, errors = run(command[0], *command[1:], *required, *arguments)
    assert code in (0, 2)
    assert code == 0 or errors.strip(), "an exit code alone explains nothing"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e308", "9" * 30])
@pytest.mark.parametrize(
    "arguments",
    [
        ("notus-launch", "--hours"),
        ("notus-launch", "--budget"),
        ("notus-launch", "--seed"),
        ("notus-launch", "--processes"),
        ("notus-launch", "--preempt"),
        ("notus-launch", "logs", "r", "--attempt"),
        *(("notus-launch", "simulate", "--trace=t", f"--{name}") for name in ("hours", "restart", "price", "start")),
        ("notus-train", "tiny-dpo", "--run=r", "--bucket=b", "--processes"),
        ("notus-data", "curate", "x", "--out=y", "--seed"),
        ("notus-data", "curate", "x", "--out=y", "--shard-rows"),
    ],
)
def test_every_number_is_bounded(arguments: tuple[str, ...], value: str) -> None:
    name, *rest = arguments
    code, errors = run(name, *rest[:-1], f"{rest[-1]}={value}")
    assert code == 2
    assert rest[-1] in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0h", "has passed"),
        ("0m", "has passed"),
        ("0001-01-01", "has passed"),
        ("99999999d", "more than a year"),
        ("9" * 400 + "h", "more than a year"),
        ("9999-12-31T23:59-12:00", "more than a year"),
        ("9999-12-31T23:59", "more than a year"),
    ],
)
def test_a_deadline_is_within_a_year(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_deadline(text, NOW)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["0h", "0.001m", "9999d", "9" * 400 + "d", "nan", "-1h", ""])
def test_a_hazard_is_a_minute_or_more(text: str) -> None:
    with pytest.raises(RequestError, match="--hazard"):
        parse_hazard(text)


def test_spans_and_gpus_at_their_bounds() -> None:
    assert parse_hazard("1m") == pytest.approx(1 / 60)
    assert parse_deadline("366d", NOW) == 366 * 24
    assert parse_gpus("A100:999").count == 999
    with pytest.raises(RequestError, match="not a GPU request"):
        parse_gpus("A100:1000")


LIMITS = {
    "NOTUS_HOURS": limits_of,
    "NOTUS_BUDGET_USD": limits_of,
    "NOTUS_HAZARD_H": limits_of,
    "NOTUS_RESTART_MIN": limits_of,
    "NOTUS_RETURN_MIN": limits_of,
    "NOTUS_CHECK_MIN": limits_of,
    "NOTUS_RESTORE_USD": limits_of,
    "NOTUS_STORE_USD_H": limits_of,
    "NOTUS_KEEP_USD_H": limits_of,
    HOURS_TO_PREEMPTION: hours_to_preemption,
}


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "1e300", "1e999", "9" * 5000, "soon", "1h", "\udcff"])
@pytest.mark.parametrize("name", LIMITS)
def test_a_number_of_the_environment_is_bounded(name: str, text: str) -> None:
    read: Callable[[dict[str, str]], object] = LIMITS[name]
    with pytest.raises(UserError, match=f"{name} is .*, and has to be a number from"):
        read({"NOTUS_RECIPE": "tiny-dpo", name: text})
    read({"NOTUS_RECIPE": "tiny-dpo", name: ""})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NOTUS_DEADLINE", "soon"),
        ("NOTUS_DEADLINE", "0001-01-01T00:00+12:00"),
        ("NOTUS_DEADLINE", "9999-12-31T23:59-12:00"),
        ("NOTUS_MET", "gcp/A100:8=nan/1"),
        ("NOTUS_MET", "gcp/A100:8=1/inf"),
        ("NOTUS_MET", "gcp/A100:8=1/2/3"),
        ("NOTUS_MET", "gcp=1/2"),
        ("NOTUS_MET", "="),
    ],
)
def test_other_limits_of_the_environment_are_named(name: str, text: str) -> None:
    with pytest.raises(UserError, match=name):
        limits_of({"NOTUS_RECIPE": "tiny-dpo", name: text})


@pytest.mark.parametrize(
    "text", ["2126-11-25T08:00", "9999-12-31", "2027-11-28T00:00", "2006-11-25T08:00Z", "0001-01-02"]
)
def test_a_deadline_of_the_environment_is_within_a_year(text: str) -> None:
    """A slip of the year would be a deadline that never binds, or always has."""
    with pytest.raises(UserError, match=r"NOTUS_DEADLINE is .*, more than a year (from now|ago)") as caught:
        limits_of({"NOTUS_RECIPE": "tiny-dpo", "NOTUS_DEADLINE": text}, NOW)
    assert "366 days" in caught.value.hint


@pytest.mark.parametrize("text", ["2026-11-24T19:59Z", "2027-11-25T08:00+02:00"])
def test_a_deadline_that_has_just_passed_is_still_the_runs(text: str) -> None:
    """A controller that starts again reads it, too."""
    found = limits_of({"NOTUS_RECIPE": "tiny-dpo", "NOTUS_DEADLINE": text}, NOW)
    assert found.deadline == datetime.fromisoformat(text)


@given(st.floats() | st.text(), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_a_number_of_the_environment_is_within_its_bounds_or_refused(value: object, one: float, other: float) -> None:
    low, high = sorted((one, other))
    try:
        found = number_of({"X": str(value)}, "X", None, at_least=low, at_most=high)
    except UserError:
        return
    assert found is None or (math.isfinite(found) and low <= found <= high)


TEXT_TYPES = (str, Path, list[str], list[Path])


def texts_of(command: tuple[str, ...]) -> list[str]:
    """The long options that take a text, and have none of their own that is empty."""
    found = typer.main.get_command(APPS[command[0]])
    for word in command[1:]:
        found = found.commands[word]  # type: ignore[attr-defined]
    return [
        max(one.opts, key=len)
        for one in found.params
        if one.opts[0].startswith("-") and one.default != "" and one.type_descriptor.annotation in TEXT_TYPES
    ]


TEXTS = [(*command, option) for command in COMMANDS for option in texts_of(command)]


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
@pytest.mark.parametrize("words", TEXTS, ids=" ".join)
def test_a_blank_text_is_never_a_default(words: tuple[str, ...], blank: str) -> None:
    """`--bucket "$B"` of a shell in which B is unset: a run of the default bucket would be stopped."""
    required = {
        "notus-train": {"RECIPE": "tiny-dpo", "--run": "r", "--bucket": "/tmp"},
        "notus-data": {"INPUTS": "/no/such/file.jsonl", "--out": "/no/such/out"},
        "notus-ckpt": {"URL": "/no/such/folder", "--step": "3"}
        | ({"FOLDER": "/no/such/out"} if words[1] in ("pull", "export") else {}),
    }.get(words[0], {"RUN": "a-run"} if words[1] in ("logs", "report", "stop") else {})
    known = [*TEXTS, *((*command, "--run") for command in COMMANDS)]
    given_ = [
        f"{name}={value}" if name.startswith("--") else value
        for name, value in required.items()
        if name != words[-1] and (not name.startswith("--") or (*words[:-1], name) in known)
    ]
    traced = ["--trace=t"] if words[1] == "simulate" and words[-1] != "--trace" else []
    code, errors = run(*words[:-1], *given_, *traced, f"{words[-1]}={blank}")
    assert code == 2
    assert f"{words[-1]} {blank!r} is blank" in errors


def test_every_option_that_takes_a_text_is_tried_blank() -> None:
    tried = {words[-1] for words in TEXTS}
    assert tried >= {"--recipe", "--cloud", "--gpus", "--deadline", "--bucket", "--name", "--hazard"}
    assert tried >= {"--step", "--run", "--scratch", "--out", "--push", "--drop-source", "--trace", "--plot"}


@pytest.mark.parametrize(
    "words",
    [
        ("notus-launch", "stop", ""),
        ("notus-launch", "status", " "),
        ("notus-ckpt", "ls", ""),
        ("notus-ckpt", "pull", "/no/such/folder", ""),
        ("notus-train", "", "--run=r", "--bucket=b"),
        ("notus-data", "curate", "", "--out=x"),
        ("notus-launch", "--cloud=gcp", "--cloud="),
    ],
)
def test_a_blank_argument_is_refused(words: tuple[str, ...]) -> None:
    code, errors = run(*words)
    assert code == 2
    assert "blank" in errors


@pytest.mark.parametrize("command", [("status",), ("runs",), ("logs", "r"), ("report", "r"), ("stop", "r")])
def test_an_empty_variable_is_unset_and_a_blank_one_is_refused(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path))
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("NOTUS_BUCKET", "")
    assert run("notus-launch", *command)[0] == 0
    monkeypatch.setenv("NOTUS_BUCKET", " ")
    code, errors = run("notus-launch", *command)
    assert code == 2
    assert "NOTUS_BUCKET is set to ' ', which is blank" in errors


@pytest.mark.parametrize("url", ["", " ", "file://", "file://runs", "s3://", "s3:///x", "gs://"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"is blank|names no"):
        open_store(url)


@pytest.mark.parametrize("bucket", ["", "file://"])
def test_what_looks_at_runs_takes_the_default_bucket_for_none_alone(bucket: str) -> None:
    for look in (
        lambda: look_story.show_status(bucket, None, "text"),
        lambda: look_story.show_report(bucket, "r", "text"),
        lambda: stop_story.stop_run(bucket, "r", at_once=True),
        lambda: launch_story.launch_local(
            LaunchRequest(recipe="tiny-dpo", bucket=bucket, name="r"), LocalOptions(0, False, None, None), "text"
        ),
    ):
        with pytest.raises(UserError, match=r"is blank|names no folder"):
            look()


SUBCOMMANDS = ("status", "runs", "logs", "report", "stop", "prices", "simulate", "doctor")


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
@pytest.mark.parametrize(
    "option", [("--bucket", "b"), ("-o", "json"), ("--gpus=H200:8",), ("--yes",), ("--no-compare",)]
)
def test_an_option_before_a_subcommand_is_refused(subcommand: str, option: tuple[str, ...]) -> None:
    code, errors = run("notus-launch", *option, subcommand, "a-run")
    assert code == 2
    assert f"before {subcommand!r} would have no effect" in errors
    assert "write " in errors or "remove" in errors


def test_the_refusal_tells_where_to_write_the_option() -> None:
    code, errors = run("notus-launch", "--bucket", "b", "--spot", "stop", "mine")
    assert code == 2
    assert "write --bucket after it: notus-launch stop ... --bucket ..." in errors
    assert "remove --spot: `notus-launch stop` has no such option" in errors


def test_what_a_subcommand_does_see_may_stand_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTUS_BUCKET", "s3://b")
    assert run("notus-launch", "stop", "mine")[0] == 0
    assert run("notus-launch", "--debug", "stop", "mine")[0] == 0


def test_options_before_export_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import main

    monkeypatch.setattr(sys, "argv", ["notus-train", "--bucket", "b", "--debug", "export", "run", "--out", "x"])
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == 2
    assert "options come after `export`" in capsys.readouterr().err


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "-1", "1.0e+300", "9" * 40])
@pytest.mark.parametrize(
    "key",
    ["learning_rate: 5.0e-4", "hours: 0.02", "cpu_processes: 2", "epochs: 2", "max_length: 256", "every_steps: 5"],
)
def test_a_number_of_a_recipe_is_bounded(key: str, value: str, tmp_path: Path) -> None:
    text = files("trainer").joinpath("recipes/tiny-dpo.yaml").read_text()
    name = key.partition(":")[0]
    (tmp_path / "mine.yaml").write_text(text.replace(key, f"{name}: {value}"))
    with pytest.raises(RecipeError, match=rf"mine\.yaml:\d+: \w+\.{name}: "):
        load_recipe(str(tmp_path / "mine.yaml"))
