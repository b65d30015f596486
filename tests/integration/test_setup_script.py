"""The set-up of a VM in a real bash, with commands that only say what they were asked and fail as told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.sky.render import setup_script
from trainer.errors import SET_UP_GAVE_UP

# Each stub writes its command line down, and does what FAKE_<first distinguishing word> says.
STUB = """\
#!/bin/bash
echo "$(basename "$0") $*" >>"$HOME/said"
case "$*" in
  *trainer.failed_start*) [ "$1" = -P ] && [ "$2" = -c ] && exit "${IMPORTS:-0}"; cp "$5" "$HOME/log"; exit "${REPORT:-0}" ;;
  *trainer.preflight*) exit "${PREFLIGHT:-0}" ;;
  *trainer.flash*) exit "${FLASH:-0}" ;;
  *torch==*) [ -z "$HANGS" ] || exec /bin/sleep 600
    count=$(grep -c 'torch==' "$HOME/said"); [ "$count" -gt "${TORCH_FAILS:-0}" ] || { echo "ERROR: try $count"; exit 1; } ;;
esac
"""


class Machine:
    """A home with stubs for uv, pip, python and sleep."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.script = setup_script()
        for folder, names in ((".local/bin", ("uv", "sleep")), ("notus-venv/bin", ("python", "pip"))):
            (home / folder).mkdir(parents=True)
            for name in names:
                (home / folder / name).write_text(STUB)
                (home / folder / name).chmod(0o755)
        (home / "notus-venv/bin/activate").write_text('PATH="$HOME/notus-venv/bin:$PATH"\n')

    def set_up(self, cwd: Path | None = None, **environment: str) -> int:
        done = subprocess.run(
            ["bash", "-c", self.script],
            cwd=cwd,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], "NOTUS_RECIPE": "tiny-dpo", "HANGS": ""}
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.output = done.stdout + done.stderr
        return done.returncode

    def said(self, word: str) -> list[str]:
        path = self.home / "said"
        return [line for line in path.read_text().splitlines() if word in line] if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home")


def test_everything_goes_well(machine: Machine) -> None:
    assert machine.set_up() == 0, machine.output
    assert [line.split()[0] for line in machine.said("")] == ["pip", "pip", "python", "python"]
    assert machine.said("failed_start") == []


@pytest.mark.parametrize("nodes", ["2", "16"])
def test_more_nodes_than_one_are_refused_before_anything_is_installed(machine: Machine, nodes: str) -> None:
    """SkyPilot's own strategies don't look, and pay the set-up on all of them until the preflight."""
    assert machine.set_up(SKYPILOT_NUM_NODES=nodes) == 2
    assert f"the task asks for {nodes} nodes" in machine.output
    assert machine.said("") == []


@pytest.mark.parametrize("nodes", ["1", "", "many"])
def test_one_node_is_set_up(machine: Machine, nodes: str) -> None:
    assert machine.set_up(SKYPILOT_NUM_NODES=nodes) == 0, machine.output
    assert machine.said("torch==")


def test_the_systems_python_runs_no_pip_of_the_users(machine: Machine, tmp_path: Path) -> None:
    """It may be older than `-P`. The folder that was sent is the current one."""
    (machine.home / ".local/bin/uv").unlink()
    system = machine.home / ".local/bin/python3"
    system.write_text(f'#!/bin/bash\necho "python3 $*" >>"$HOME/said"\nexec {sys.executable} -m pip --version\n')
    system.chmod(0o755)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent/pip.py").write_text("print('a namesake')\n")
    assert machine.set_up(cwd=tmp_path / "sent", PATH="/usr/bin:/bin") == 0, machine.output
    assert machine.said("python3") == ["python3 -m pip install --user uv"]
    assert "a namesake" not in machine.output


def test_a_download_is_tried_three_times(machine: Machine) -> None:
    assert machine.set_up(TORCH_FAILS="2") == 0, machine.output
    assert len(machine.said("torch==")) == 3
    assert [line.split()[1] for line in machine.said("sleep")] == ["20", "45"]


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"REPORT": "0"}, 75),
        ({"REPORT": str(SET_UP_GAVE_UP)}, 1),
        # Nobody counts: SkyPilot's own strategies would go on without end, and NOTUS has a bound of its own.
        ({"REPORT": "1"}, 1),
        ({"REPORT": "1", "NOTUS_PRICE_USD_H": "16.5"}, 75),
        ({"REPORT": "124", "NOTUS_PRICE_USD_H": "16.5"}, 75),
    ],
)
def test_what_fails_is_reported_and_another_machine_is_asked_for(
    machine: Machine, environment: dict[str, str], code: int
) -> None:
    assert machine.set_up(TORCH_FAILS="99", **environment) == code, machine.output
    assert len(machine.said("torch==")) == 3 + 1, "three tries, and its name in the report"
    (report,) = machine.said("-m trainer.failed_start")
    assert "pip install torch==2.13.0" in report
    assert "ERROR: try 3" in (machine.home / "log").read_text()
    assert machine.said("trainer.preflight") == []


def test_a_machine_that_lacks_our_package_gets_it_to_report(machine: Machine) -> None:
    assert machine.set_up(TORCH_FAILS="99", IMPORTS="1") == 75
    assert machine.said("python -P -m pip install -q -c constraints.txt .")


@pytest.mark.parametrize(("preflight", "code", "reports"), [("2", 2, 0), ("75", 75, 1), ("1", 75, 1), ("137", 75, 1)])
def test_only_what_every_machine_would_meet_ends_the_job_at_once(
    machine: Machine, preflight: str, code: int, reports: int
) -> None:
    assert machine.set_up(PREFLIGHT=preflight) == code, machine.output
    assert len(machine.said("-m trainer.failed_start")) == reports
    assert len(machine.said("trainer.preflight")) == 1 + reports


def test_without_flash_attn_the_run_goes_on(machine: Machine) -> None:
    assert machine.set_up(FLASH="1") == 0, machine.output


def test_a_command_that_hangs_is_ended(machine: Machine) -> None:
    machine.script = machine.script.replace("step 600 3 pip install torch", "step 1 3 pip install torch")
    assert machine.set_up(HANGS="1") == 75, machine.output
    assert "exit code 124 (124 = more than 1 s), try 3 of 3: pip install torch==2.13.0" in machine.output


def test_all_of_it_has_a_limit(machine: Machine) -> None:
    machine.script = machine.script.replace("left=$((2100 - SECONDS))", "left=$((2 - SECONDS))")
    began = time.monotonic()
    assert machine.set_up(HANGS="1") == 75, machine.output
    assert time.monotonic() - began < 60, "600 s three times"
    assert "no time left for: pip install torch==2.13.0" in (machine.home / "log").read_text()


def test_every_command_that_may_wait_has_a_limit() -> None:
    """Only what the shell itself does in no time stands alone."""
    body = setup_script().split("\n}\n")[-1]
    assert body.count("step ") > 4
    for line in body.splitlines():
        if not line.startswith(("#", ". ")) and line:
            assert "step " in line or "bounded " in line, line
