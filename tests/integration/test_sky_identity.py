"""What is asked of SkyPilot 0.14.1 itself: its names, its YAML, what it sends, and what a job tells of itself."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from launcher.sky.setup.release_wheel import repack

ROOT = Path(__file__).parents[2]


def check(name: str, environment: dict[str, str]) -> None:
    words = [sys.executable, "-m", "tests.support.sky_checks", name]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["names", "yaml", "ours", "plain", "queue", "credentials"])
def test_skypilot_is_as_we_believe(name: str, sky_environment: dict[str, str]) -> None:
    check(name, sky_environment)


@pytest.mark.parametrize("ignore", [".gitignore", ".git/info/exclude"])
def test_a_repository_around_it_thins_out_nothing_that_is_sent(
    tmp_path: Path, sky_environment: dict[str, str], ignore: str
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ignore).write_text("*.jsonl\ndata/\n*.yaml\n*.py\n*.whl\n")
    check("sent", sky_environment)


def test_an_installed_release_is_installed_again_from_its_own_files(tmp_path: Path) -> None:
    """As the set-up of a machine does it; without what we depend on."""
    wheel = repack(tmp_path)
    (tmp_path / "again").mkdir()
    assert repack(tmp_path / "again").read_bytes() == wheel.read_bytes()
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    offline = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", *offline, f"{wheel}[trainer]"]
    subprocess.run(install, check=True)
    code = "import checkpoints, trainer, launcher; print(launcher.__file__)"
    where = subprocess.run([python, "-P", "-c", code], check=True, capture_output=True, text=True, env={}).stdout
    assert where.startswith(str(tmp_path / "venv"))
    assert (tmp_path / "venv/bin/notus-train").exists()
    (installed,) = (tmp_path / "venv").glob("lib/*/site-packages/trainer/recipes/tiny-dpo.yaml")
    assert installed.read_text() == (ROOT / "trainer/recipes/tiny-dpo.yaml").read_text()
