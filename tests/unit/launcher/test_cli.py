"""The command lines: one clear line and the right exit code for each kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from launcher import cli


def launch(*arguments: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> int:
    monkeypatch.setenv("NOTUS_HOME", str(home))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on a machine with GPUs a test must not launch a 7B run
    monkeypatch.setattr(sys, "argv", ["notus-launch", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--recipe", "tiny-dop"), 2, "did you mean 'tiny-dpo'"),
        (("--cloud", "lamda"), 2, "did you mean 'lambda'"),
        (("--dry-run", "--gpus", "A10O:8"), 2, "did you mean 'A100'"),
        (("--cloud", "lambda", "--spot"), 2, "Lambda has no spot machines"),
        (("--spot", "--on-demand"), 2, "mutually exclusive"),
        (("--deadline", "soon"), 2, "not a deadline"),
        (("--dry-run", "--deadline", ""), 2, "--deadline '' is blank"),
        (("--dry-run", "--hazard", ""), 2, "--hazard '' is blank"),
        (("--dry-run", "--bucket", "ftp://x"), 2, "'ftp://x' is not one"),
        (("--dry-run", "--bucket", "runs"), 2, "'runs' is not one"),
        (("--dry-run", "--bucket", "/tmp/runs"), 2, "'/tmp/runs' is not one"),
        (("--dry-run", "--bucket", "s3://"), 2, "'s3://' is not one"),
        (("--dry-run", "--gpus", "H100:4"), 3, "no offer for H100:4"),
        (("prices", "--cloud", "lambda", "--spot"), 2, "Lambda has no spot machines"),
        (("--name", "../up"), 2, "is not a run name"),
        (("--cloud", "local", "--recipe", "notus-7b-dpo"), 2, "this machine has no GPU"),
        (("--cloud", "local", "--recipe", "tiny-dpo", "--bucket", "/no/such/folder"), 2, "does not exist"),
        (("--preempt", "2"), 2, "only work with --cloud local"),
        (("-o", "xml"), 2, "'xml' is not one of 'text', 'json'"),
        (("prices", "refetch"), 2, "'refetch' is not one of 'show', 'refresh', 'diff'"),
        (("--cloud", "local", "--dry-run", "--budget", "5"), 2, "--dry-run, --budget can't be used with --cloud local"),
        (("--recipe", "/tmp/x/mine.yaml", "--cloud", "gcp"), 2, "no recipe file"),
        (("--dry-run", "--budget", "1"), 3, "no plan meets a budget of $1.00"),
        (("status", "nothing"), 2, "there is no run 'nothing'"),
        (("logs", "nothing"), 2, "there is no run 'nothing'"),
        (("report", "nothing"), 2, "there is no run 'nothing'"),
        (("report", "../../etc"), 2, "is not a run name"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert launch(*arguments, monkeypatch=monkeypatch, home=tmp_path) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_dry_run_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("--dry-run", "--cloud", "gcp", "--cloud", "lambda", "--deadline", "24h", "-o", "json")
    assert launch(*arguments, monkeypatch=monkeypatch, home=tmp_path) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recommended"] == "GCP spot H100:8"
    assert "recover_on_exit_codes" in data["task"]


def test_dry_run_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch("--dry-run", monkeypatch=monkeypatch, home=tmp_path) == 0
    text = capsys.readouterr().out
    first = [line.split("  ")[0] for line in text.splitlines()[:8] if not line.startswith(" ")]
    assert first[:5] == ["recommended", "cost", "done in", "saves", "without spot"], "the answer comes first"
    assert "assumptions" not in text
    assert len(text.splitlines()) < 35
    assert "the task uses EAGER_NEXT_REGION, which ignores deadline and budget" in text
    assert launch("--explain", monkeypatch=monkeypatch, home=tmp_path) == 0
    assert "\nassumptions\n" in capsys.readouterr().out


def test_the_task_alone_can_be_handed_to_skypilot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch("--show-task", monkeypatch=monkeypatch, home=tmp_path) == 0
    task = YAML(typ="safe").load(capsys.readouterr().out)
    assert task["name"] == "notus-7b-dpo"
    assert task["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"


def test_the_next_command_has_the_same_options_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--cloud", "lambda", "--deadline", "24h", "--name", "my-run")
    assert launch("--dry-run", *options, monkeypatch=monkeypatch, home=tmp_path) == 0
    *_, account, command = capsys.readouterr().out.splitlines()
    assert account == "set up Lambda: notus-launch doctor"
    assert command == "launch: notus-launch " + " ".join(options) + " --bucket s3://YOUR-BUCKET/PREFIX"
    (tmp_path / ".lambda_cloud").mkdir()
    (tmp_path / ".lambda_cloud/lambda_keys").write_text("api_key = x")
    assert launch("--dry-run", *options[:4], "--bucket", "s3://b", monkeypatch=monkeypatch, home=tmp_path) == 0
    text = capsys.readouterr().out
    assert "Lambda ready" in text
    assert "set up" not in text
    assert text.splitlines()[-1].endswith("--bucket s3://b")


def test_an_empty_bucket_has_no_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch("runs", monkeypatch=monkeypatch, home=tmp_path) == 0
    assert "no runs in" in capsys.readouterr().err


def test_nothing_heavy_is_imported_for_help_or_a_dry_run(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom launcher import cli\nsys.argv = ['notus-launch', *{arguments}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'sky', 'transformers', 'boto3') if name in sys.modules])\n"
    )
    for arguments in (["--help"], ["--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            capture_output=True,
            text=True,
            check=True,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_notus_train_under_torchrun_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.main", "tiny-dpo"],
        capture_output=True,
        text=True,
        check=False,
        env={"RANK": "0"},
    )
    assert done.returncode == 2
    assert "starts torchrun itself" in done.stderr
