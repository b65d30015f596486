"""Rebuild the wheel of an installed release from the files that are installed here.

Rented machines and the jobs controller run the same code as this machine. The package index is never queried for our
own name, because whoever registers a name there decides what `pip install` gets.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import launcher

PACKAGES = ("launcher", "trainer", "checkpoints")
DISTRIBUTION = "notus-launch"
TAG_DIGITS = 12
_COPIED = ("METADATA", "entry_points.txt")
"""Files copied from the installed metadata: requirements with their extras, and the commands."""
_WHEEL = "Wheel-Version: 1.0\nGenerator: notus-launch\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def repack(folder: Path) -> Path:
    """Write the wheel of the installed files to `folder`. The same files give the same bytes and name."""
    content = _content()
    target = folder / _file_name(content)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            wheel.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # without a date
        wheel.writestr(zipfile.ZipInfo(_record_name()), _record(content))
    return target


def installed_name() -> str:
    """The file name that `repack` would use."""
    return _file_name(_content())


def build_tag(parts: Iterable[tuple[str, bytes]]) -> str:
    """A tag that identifies the content, because SkyPilot installs each wheel file name once.

    PEP 427 requires a leading digit, and leading digits form a number, so it begins with one digit and a letter.
    """
    digest = hashlib.sha256()
    for name, data in parts:
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return f"0h{digest.hexdigest()[:TAG_DIGITS]}"


def _content() -> dict[str, bytes]:
    """The wheel's content, except for its list of files."""
    root = Path(launcher.__file__).parents[1]
    code = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    installed = distribution(DISTRIBUTION)
    texts = {name: text for name in _COPIED if (text := installed.read_text(name)) is not None}
    metadata = {f"{_info()}/{name}": text.encode() for name, text in {**texts, "WHEEL": _WHEEL}.items()}
    return code | metadata


def _file_name(content: dict[str, bytes]) -> str:
    return f"{_stem()}-{build_tag(content.items())}-py3-none-any.whl"


def _stem() -> str:
    return f"{DISTRIBUTION.replace('-', '_')}-{distribution(DISTRIBUTION).version}"


def _info() -> str:
    return f"{_stem()}.dist-info"


def _record_name() -> str:
    return f"{_info()}/RECORD"


def _record(content: dict[str, bytes]) -> str:
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    return "\n".join([*lines, f"{_record_name()},,", ""])


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
