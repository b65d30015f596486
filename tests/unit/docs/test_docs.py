"""Docs that can drift are compared with what they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.cli_reference import pages
from tests.support.paths import ROOT


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


def test_every_test_that_the_table_of_what_holds_names_is_there() -> None:
    text = (ROOT / "docs/concepts/what-holds.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| what fails")]
    assert len(rows) > 20
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    for row in rows:
        named = re.findall(r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", row.rsplit(" | ", 1)[-1])
        assert named, f"no test in: {row}"
        for path, test in named:
            file = files.get(Path(path).name)
            assert file is not None, path
            assert "/" not in path or file == ROOT / path
            defined = re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)
            assert defined if not test else test in defined, f"{path} has no {test}"


def test_docs_named_in_the_code_exist() -> None:
    code = [path for package in ("launcher", "trainer", "checkpoints") for path in (ROOT / package).rglob("*.py")]
    named = {target for path in code for target in re.findall(r"docs/[\w/-]+\.md", path.read_text())}
    assert named
    assert [target for target in named if not (ROOT / target).exists()] == []
