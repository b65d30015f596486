"""Docs that can drift are compared with what they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.reference import pages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(pages()))
def test_reference_pages_are_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs/reference" / name).read_text() == pages()[name], "run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_docs_named_in_the_code_exist() -> None:
    code = [path for package in ("launcher", "trainer", "checkpoints") for path in (ROOT / package).rglob("*.py")]
    named = {target for path in code for target in re.findall(r"docs/[\w/-]+\.md", path.read_text())}
    assert named
    assert [target for target in named if not (ROOT / target).exists()] == []
