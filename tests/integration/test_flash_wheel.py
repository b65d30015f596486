"""The set-up's flash-attn with the real pip: a stand-in of that name is built from source, kept, and installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TAG = "built_at"
SETUP = f"""\
import time
from setuptools import setup
open("flash_attn.py", "w").write(f"{TAG} = {{time.time_ns()}}")
setup(name="flash-attn", version="2.8.3", py_modules=["flash_attn"])
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder that pip finds flash-attn's source in; each build of it makes another file."""
    source = tmp_path / "flash_attn-2.8.3"
    source.mkdir()
    (source / "setup.py").write_text(SETUP)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    folder = tmp_path / "sources"
    folder.mkdir()
    with tarfile.open(folder / "flash_attn-2.8.3.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    return folder


def set_up(target: Path, sources: Path, bucket: Path) -> tuple[str, str]:
    """As on a VM, into a folder of its own. What was said, and the module that is there in the end."""
    environment = os.environ | {
        "NOTUS_BUCKET": str(bucket),
        "NOTUS_RUN": "exp1",
        "HF_TOKEN": "hf_" + 34 * "a",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(sources),
        "PIP_TARGET": str(target),
        "PIP_NO_CACHE_DIR": "1",  # else pip itself would remember what it has built
    }
    command = [sys.executable, "-m", "trainer.flash", "notus-7b-dpo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    module = target / "flash_attn.py"
    return done.stdout, module.read_text() if module.exists() else done.stderr


def test_a_wheel_is_built_once_and_installed_on_the_next_machine(sources: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    said, first = set_up(tmp_path / "first", sources, bucket)
    assert "no flash-attn in the bucket" in said
    said, second = set_up(tmp_path / "second", sources, bucket)
    assert "comes from the bucket" in said
    assert first == second
    assert TAG in first
