"""stdout in any encoding, full, closed or without a reader; stderr that can't be written. For all four commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.util.interpreter import module
from checkpoints.util.streams import OutputLost, ReaderGone, reliable_streams
from tests.support.paths import ROOT

COMMANDS = {
    "notus-launch": (*module("launcher.cli"), "prices", "--cloud", "lambda"),
    "notus-ckpt": (*module("checkpoints.cli"), "--help"),
    "notus-train": (*module("trainer.main"), "--help"),
    "notus-data": (*module("trainer.curation.cli"), "curate", "--help"),
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    root = str(ROOT)
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": root, "COLUMNS": "80"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_stdout_is_one_line_and_a_missing_reader_none(name: str, environment: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            COMMANDS[name], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"{name}: cannot write to stdout: No space left on device"
    assert "Traceback" not in done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        COMMANDS[name], stdout=writing, stderr=subprocess.PIPE, text=True, env=environment, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_stderr_ends_nothing(name: str, environment: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(COMMANDS[name], stdout=subprocess.PIPE, stderr=full, env=environment, check=False)
    assert done.returncode == 0
    assert done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_dry_run_comes_out_in_any_encoding(encoding: str, environment: dict[str, str]) -> None:
    command = (*module("launcher.cli"), "--explain", "--cloud", "lambda", "--gpus", "A100:8")
    done = subprocess.run(command, capture_output=True, env={**environment, "PYTHONIOENCODING": encoding}, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "recommended" in text
    assert ("◆" if encoding == "utf-8" else "*") in text


def written(text: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with reliable_streams():
        sys.stdout.write(text)
    return raw.getvalue().decode(encoding)


def test_what_an_encoding_lacks_is_replaced_so_that_json_reads_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written("━◆█│…ä", "ascii", monkeypatch) == r"-*#|.\u00e4"
    assert written("ä💸\udcff", "cp1252", monkeypatch) == "ä\\ud83d\\udcb8\\udcff"
    for text in ("ä💸漢字 \u2028", "name\udcff"):
        told = written(json.dumps({"text": text}, ensure_ascii=False), "ascii", monkeypatch)
        assert json.loads(told) == {"text": text}


class Broken(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    def flush(self) -> None:
        raise OSError(self._code, os.strerror(self._code))


def test_what_is_lost_at_the_very_end_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Broken(28)
    monkeypatch.setattr(sys, "stdout", before)
    with pytest.raises(OutputLost, match="No space left on device"), reliable_streams():
        sys.stdout.write("the result")
        raise SystemExit(0)
    assert sys.stdout is before, "the streams are what they were"
    monkeypatch.setattr(sys, "stdout", Broken(32))
    with pytest.raises(ReaderGone), reliable_streams():
        pass


def test_a_story_that_nobody_can_read_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(28))
    with reliable_streams():
        sys.stderr.write("a line\n")
        sys.stderr.flush()
        sys.stderr.writelines(["and", "more"])


def test_closed_descriptors_are_not_given_to_the_next_file(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom checkpoints.util.streams import reliable_streams\n"
        f"with reliable_streams():\n    with open({str(tmp_path / 'state')!r}, 'w') as file:\n"
        "        print('the story', file=sys.stderr)\n        print('the result')\n        assert file.fileno() > 2\n"
        "    assert sys.stdin.read() == ''\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], env=environment, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "state").read_text() == ""
