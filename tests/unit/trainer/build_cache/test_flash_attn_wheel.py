"""flash-attn on a new machine: compiled once a run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.build_cache import flash_attn_wheel

WHEEL = "flash_attn-2.8.3.post2-cp311-cp311-linux_x86_64.whl"


class Pip:
    """Remembers what it was asked, and compiles nothing."""

    def __init__(self, *, fails: str = "", refuses: bytes = b"") -> None:
        """`fails`: on this command; `refuses`: wheels of these bytes."""
        self.said: list[str] = []
        self.fails, self.refuses = fails, refuses

    def __call__(self, arguments: Sequence[str]) -> None:
        self.said.append(arguments[0])
        if arguments[0] == self.fails:
            raise subprocess.CalledProcessError(1, "pip")
        if arguments[0] == "wheel":
            folder = Path(arguments[arguments.index("-w") + 1])
            folder.mkdir()
            (folder / WHEEL).write_bytes(b"compiled here")
        elif Path(arguments[-1]).read_bytes() == self.refuses:
            raise subprocess.CalledProcessError(1, "pip")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bucket").mkdir()
    return {"NOTUS_BUCKET": str(tmp_path / "bucket"), "NOTUS_RUN": "exp1", "HF_TOKEN": "hf_" + 34 * "a"}


def test_the_second_machine_compiles_nothing(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Pip(), Pip()
    flash_attn_wheel.install(first, None, environment)
    flash_attn_wheel.install(second, None, environment)
    assert first.said == ["wheel", "install"]
    assert second.said == ["install"]
    assert "comes from the bucket" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"HF_TOKEN": "hf_" + 34 * "b"},  # another user's signature
        {"HF_TOKEN": ""},
        {"NOTUS_CODE_CACHE": "0"},
        {"FLASH_ATTN_CUDA_ARCHS": "90"},
        {"NOTUS_RUN": "exp2"},
        {"NOTUS_BUCKET": "what is this://"},
    ],
)
def test_what_is_not_signed_or_of_another_kind_is_compiled(environment: dict[str, str], change: dict[str, str]) -> None:
    flash_attn_wheel.install(Pip(), None, environment)
    pip = Pip()
    flash_attn_wheel.install(pip, None, environment | change)
    assert pip.said == ["wheel", "install"]


def test_a_changed_wheel_is_not_installed(environment: dict[str, str], tmp_path: Path) -> None:
    flash_attn_wheel.install(Pip(), None, environment)
    (stored,) = (tmp_path / "bucket").rglob(WHEEL)
    stored.write_bytes(b"evil")
    pip = Pip()
    flash_attn_wheel.install(pip, None, environment)
    assert pip.said == ["wheel", "install"]


def test_a_wheel_that_pip_refuses_is_compiled_anew(environment: dict[str, str]) -> None:
    flash_attn_wheel.install(Pip(), None, environment)
    pip = Pip(refuses=b"compiled here")
    with pytest.raises(subprocess.CalledProcessError):
        flash_attn_wheel.install(pip, None, environment)  # this pip refuses what it compiled, too
    assert pip.said == ["install", "wheel", "install"]


def test_without_a_compiler_the_set_up_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flash_attn_wheel, "run_pip", Pip(fails="wheel"))
    monkeypatch.setattr("sys.argv", ["flash", "notus-7b-dpo", "constraints.txt"])
    assert flash_attn_wheel.main() == 0
    assert "using torch's own attention" in capsys.readouterr().out


def test_a_recipe_for_a_cpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(flash_attn_wheel, "run_pip", pip)
    monkeypatch.setattr("sys.argv", ["flash", "tiny-dpo"])
    assert flash_attn_wheel.main() == 0
    assert pip.said == []


def test_the_key_follows_the_pinned_version(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    old.write_text("flash-attn==2.8.3\nnumpy==2.1\n")
    other.write_text("flash-attn==2.8.3\nnumpy==2.2\n")
    new.write_text("flash-attn==2.8.4\nnumpy==2.1\n")
    key = flash_attn_wheel.wheel_key({}, str(old))
    assert key == flash_attn_wheel.wheel_key({}, str(other))
    assert key != flash_attn_wheel.wheel_key({}, str(new))
