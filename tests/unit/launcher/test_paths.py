"""A home folder that can't be written, or isn't known: named with NOTUS_HOME, and no reason not to look."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
import typer

from checkpoints.errors import UserError
from checkpoints.util.command_line import run_app
from checkpoints.util.environment import user_path
from launcher import cli
from launcher.cli_options import writable
from launcher.commands import inspect_runs
from launcher.paths import default_bucket, home

NO_HOME = "/proc/nobody"
"""Where not even root can make a folder."""


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("HOME", NO_HOME)
    for name in ("NOTUS_HOME", "NOTUS_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["notus-launch", *arguments])
    monkeypatch.setattr(inspect_runs, "ask_skypilot", lambda: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code if isinstance(caught.value.code, int) else 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("runs",), 0, f"no runs in file://{NO_HOME}/.notus/bucket"),
        (("status",), 0, f"no runs in file://{NO_HOME}/.notus/bucket"),
        (("status", "x"), 2, "there is no run 'x'"),
        (("logs", "x"), 2, "there is no run 'x'"),
        (("report", "x"), 2, "there is no run 'x'"),
        (("stop", "x"), 2, "there is no run 'x'"),
        (("prices", "--cloud", "lambda"), 0, ""),
        (("--cloud", "local", "--recipe", "tiny-dpo"), 2, "set NOTUS_HOME to a writable folder"),
        (
            ("--cloud", "local", "--recipe", "tiny-dpo", "--bucket", "/tmp"),
            2,
            f"{NO_HOME}/.notus/scratch can't be used",
        ),
        (("doctor", "--fix"), 2, f"{NO_HOME}/.sky/plugins.yaml can't be written"),
    ],
)
def test_commands_without_a_home(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch(monkeypatch, *arguments) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_looking_makes_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "notus"))
    assert default_bucket() == f"file://{tmp_path}/notus/bucket"
    assert not (tmp_path / "notus").exists()
    assert writable(home() / "scratch").is_dir()


def test_a_file_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "notus").touch()
    monkeypatch.setenv("NOTUS_HOME", str(tmp_path / "notus"))
    with pytest.raises(UserError, match="scratch can't be used: Not a directory"):
        writable(home() / "scratch")


def test_a_home_that_nobody_knows_is_named() -> None:
    with pytest.raises(UserError, match="the home folder in '~no-such-user/x' is not known"):
        user_path("~no-such-user/x")


def failing(error: OSError) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def command(debug: bool = False) -> None:
        raise error

    return app


def test_a_file_that_fails_is_named_whoever_opened_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as caught:
        run_app(failing(PermissionError(errno.EACCES, "Permission denied", "/some/file")), "notus-x")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("notus-x: /some/file: Permission denied\n")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error", "/some/file"), OSError(errno.ENOSPC, "full")]
)
def test_what_is_no_users_fault_is_a_traceback(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(OSError, match=error.strerror):
        run_app(failing(error), "notus-x")
