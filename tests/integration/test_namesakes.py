"""A folder full of files named like our modules and their dependencies: no process of ours runs one of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from checkpoints.util.interpreter import SAFE, environment, module
from launcher.sky.render import setup_script
from tests.integration.conftest import Launcher
from trainer.supervisor import preflight

OURS = ("checkpoints", "launcher", "trainer")
THEIRS = (
    *("json", "logging", "random", "typing", "socket", "queue", "signal", "tempfile", "subprocess", "platform"),
    *("numpy", "torch", "deepspeed", "transformers", "trl", "datasets", "pydantic", "psutil", "typer", "pip"),
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose every module leaves a mark when it is run."""
    folder = tmp_path / "users"
    code = f"with open({str(tmp_path / 'marks')!r}, 'a') as marks:\n    marks.write(__file__ + chr(10))\n"
    for name in (*OURS, *THEIRS):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)
        (folder / name / "__main__.py").write_text(code)
        (folder / f"{name}.py").write_text(code)
    return folder


def marks(hostile: Path) -> str:
    found = hostile.parent / "marks"
    return found.read_text() if found.exists() else ""


def test_python_without_care_would_run_them(hostile: Path) -> None:
    """Else the tests below would show nothing."""
    subprocess.run([sys.executable, "-m", "trainer"], cwd=hostile, check=True)
    assert "trainer" in marks(hostile)


@pytest.mark.parametrize("path", [":/nowhere", "/nowhere:", "/nowhere::/elsewhere", ".:/nowhere", "../users", ":"])
def test_a_path_with_the_users_folder_in_it_is_left_out(
    hostile: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile)
    monkeypatch.setenv("PYTHONPATH", path)
    code = "import sys, json, random; print(sys.path)"
    careless = {**environment(), "PYTHONPATH": path}
    if path != ":":  # which Python itself reads as two empty ones, too
        subprocess.run([*SAFE, "-c", code], env=careless, check=True, capture_output=True)
        assert "random" in marks(hostile), "-P alone does not help"
        (hostile.parent / "marks").unlink()
    told = subprocess.run([*SAFE, "-c", code], env=environment(), check=True, capture_output=True, text=True).stdout
    assert marks(hostile) == ""
    assert str(hostile) not in told
    assert ("/nowhere" in told) == ("/nowhere" in path), "the rest stays"


def test_a_checkout_on_a_relative_path_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root / "docs")
    assert environment({"PYTHONPATH": ":..:how-to", "X": "1"}) == {"PYTHONPATH": str(root), "X": "1"}
    assert environment({"X": "1"}) == {"X": "1"}
    assert environment({"PYTHONPATH": "::"}) == {}


def test_a_run_executes_no_namesake(hostile: Path, launcher: Launcher) -> None:
    """Launcher, supervisor, torchrun, two ranks with DeepSpeed, their uploaders: all start in the user's folder."""
    recipe = files("trainer").joinpath("recipes/tiny-dpo.yaml").read_text()
    (hostile / "mine.yaml").write_text(recipe.replace("  epochs: 2\n", "  max_steps: 3\n"))
    done = subprocess.run(
        [*module("launcher.cli"), *launcher.local("mine.yaml", "--name", "namesakes", "--bucket", launcher.bucket)],
        cwd=hostile,
        env=launcher.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "finished at step 3" in done.stderr
    assert marks(hostile) == ""


def test_the_check_of_torch_executes_no_namesake(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    with pytest.raises(preflight.HardwareError):
        preflight.check_torch()  # it says that there is no GPU, in torch's own words
    assert marks(hostile) == ""


def test_pip_is_the_environments(hostile: Path) -> None:
    subprocess.run([*module("pip"), "--version"], cwd=hostile, check=True, capture_output=True)
    assert marks(hostile) == ""


def test_the_set_up_of_a_machine_starts_python_like_that_too() -> None:
    """The system's own may be older than `-P`, and starts elsewhere."""
    lines = [line for line in setup_script().splitlines() if not line.lstrip().startswith("#")]
    started = [line for line in lines if re.search(r'python[0-9]*"? -', line)]
    assert len(started) == 6
    careless = [line for line in started if not re.search(r'(env --chdir=/ python3|python"? -P) -[mc] ', line)]
    assert careless == []


def test_no_process_is_started_without_it() -> None:
    """`python -m` in our code is `checkpoints.util.interpreter`'s to write."""
    root = Path(__file__).parents[2]
    sources = [path for package in OURS for path in (root / package).rglob("*.py")]
    careless = [
        f"{path.relative_to(root)}:{number}"
        for path in sources
        if path.name != "interpreter.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if 'sys.executable, "' in line or line.lstrip().startswith("sys.executable,")
    ]
    bare = [
        f"{path.relative_to(root)}:{call.lineno}"
        for path in sources
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("subprocess.run", "subprocess.Popen")
        and re.search(r"module\(|SAFE|\bcommand\b|words|_command", ast.unparse(call))
        and not any(keyword.arg == "env" for keyword in call.keywords)
    ]
    assert bare == []
    assert SAFE[1] == "-P"
    assert careless == []
