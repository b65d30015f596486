"""The table of docs/concepts/where-to-run.md: shares, their intervals, and how it is written. Without the referee."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", ROOT / "docs/examples/policy/compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["compare"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cells(compare: ModuleType) -> list[Any]:
    """Jobs whose cost differs widely; ours is cheaper by a tenth in each of them, SkyPilot's dearer by its own luck."""
    dice = random.Random(1)
    found = [compare.Cell(group, restart) for group in ("m2 single", "another") for restart in (0.05, 0.2)]
    for cell in found:
        for job in range(80):
            up_a8 = dice.uniform(4, 40)
            own = {compare.OURS: 0.9 * up_a8, compare.SKYPILOT: up_a8 * dice.uniform(1.0, 2.0), compare.ON_DEMAND: 50.0}
            cell.work_h.append((12.0, 48.0)[job % 2])
            cell.slack.append((1.25, 2.0)[job // 2 % 2])
            cell.block.append(job // 8)
            for policy in compare.COLORS:
                cell.cost[policy].append(own.get(policy, up_a8))
                cell.late[policy].append(policy == compare.SKYPILOT and job < 3)
    return found


def test_a_policy_that_is_cheaper_in_each_job_has_no_interval(compare: ModuleType, cells: list[Any]) -> None:
    """Jobs are compared in pairs: how much they differ among themselves is no doubt about the policies."""
    for row in compare.table_of(cells):
        assert row.against_up_a8[compare.OURS] == pytest.approx((-0.1, -0.1, -0.1))
        assert row.against_up_a8[compare.UP_A8] == pytest.approx((0, 0, 0))
        dearer = row.against_up_a8[compare.SKYPILOT]
        assert 0 < dearer.low < dearer.mean < dearer.high < 1


def test_the_mean_is_of_the_scenarios_and_surer_than_any_of_them(compare: ModuleType, cells: list[Any]) -> None:
    *rows, mean = compare.table_of(cells)
    assert [row.scenario for row in rows] == [
        "one zone, 1 node, restart 3 min", "one zone, 1 node, restart 12 min",
        "another, restart 3 min", "another, restart 12 min",
    ]  # fmt: skip
    shares = [row.against_up_a8[compare.SKYPILOT] for row in rows]
    told = mean.against_up_a8[compare.SKYPILOT]
    assert told.mean == pytest.approx(sum(share.mean for share in shares) / 4)
    assert told.high - told.low < min(share.high - share.low for share in shares)
    assert (mean.jobs, mean.late[compare.SKYPILOT], mean.late[compare.OURS]) == (320, 12, 0)


def test_a_block_is_drawn_with_all_its_jobs(compare: ModuleType) -> None:
    counts = compare.drawn([7, 7, 9, 9, 11], seed=0)
    assert (counts[0] == 1).all(), "first the jobs as they are"
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2] == counts[:, 3]).all()
    assert (counts[:, 0] + counts[:, 2] + counts[:, 4] == 3).all(), "as many blocks as there are"
    assert (compare.drawn([7, 7, 9, 9, 11], seed=0) == counts).all()


def test_the_table_in_both_forms(compare: ModuleType, cells: list[Any]) -> None:
    rows = compare.table_of(cells)
    lines = compare.as_markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows) + 1
    assert {line.count("|") for line in lines} == {2 + len(compare.COLORS)}
    assert "| -10.0 % [-10.0, -10.0] |" in lines[2]
    assert "| 12 of 320 |" in lines[-1]
    told = json.loads(compare.as_json(rows))
    assert [row["scenario"] for row in told] == [row.scenario for row in rows]
    assert told[-1]["against_up_a8"][compare.OURS]["mean"] == pytest.approx(-0.1)
