"""Tables in a pipe's 80 columns: whatever is wrapped or cut, it is no figure."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from launcher.catalog.offers import Catalog
from launcher.console import rounded
from launcher.report.plan_tables import show_dry_run
from launcher.report.run_tables import status_table
from launcher.report.status import RunStatus
from tests.support.plans import A100_ONLY, plan


@pytest.mark.parametrize("factor", [1, 10, 100, 8000])
@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_figure_of_a_plan_is_in_its_line(snapshot: Catalog, width: int, factor: int) -> None:
    _, result = plan(snapshot, deadline_h=24.0, budget_usd=150.0, **A100_ONLY)
    dear = [
        one.model_copy(
            update={
                "expected_cost_usd": one.expected_cost_usd * factor,
                "cost_p95_usd": one.cost_p95_usd * factor,
                "expected_finish_h": min(one.expected_finish_h * factor, 8784.0),
                "finish_p95_h": min(one.finish_p95_h * factor, 10_000.0),
                "expected_preemptions": min(one.expected_preemptions * factor, 9999.0),
            }
        )
        for one in result.plans
    ]
    stream = io.StringIO()
    show_dry_run(Console(file=stream, width=width), result.model_copy(update={"plans": tuple(dear)}))
    lines = stream.getvalue().splitlines()
    assert any("preempted  in time  in budget" in line for line in lines)
    for one in dear[:6]:
        figures = (
            *(rounded(value, 2) for value in (one.expected_cost_usd, one.cost_p95_usd)),
            *(rounded(one.expected_finish_h, 1), rounded(one.finish_p95_h, 1), rounded(one.expected_preemptions, 1)),
            *(f"{one.deadline_probability:.0%}", f"{one.budget_probability:.0%}"),
        )
        assert any(" ".join(figures) in " ".join(line.split()) for line in lines), figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (154.613, "154.61"),
        (1545.64, "1,545.6"),
        (15456.4, "15,456"),
        (999_999.4, "999,999"),
        (1_395_573.0, "1.40M"),
        (10_000_000.0, "10.00M"),
    ],
)
def test_a_figure_has_seven_characters_or_fewer(value: float, text: str) -> None:
    assert rounded(value, 2) == text
    assert len(text) <= 7


def test_what_does_not_fit_goes_on_in_the_next_line() -> None:
    """A name of 63 characters takes the room of the others, and every character of theirs is still there."""
    status = RunStatus.damaged("r" * 63).model_copy(
        update={"step": 123456, "total_steps": 999999, "loss": 0.1234, "cost_usd": 123456.78, "silent_s": 12.3}
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(status_table([status]))
    text = stream.getvalue()
    assert "…" not in text
    for part in ("123456/999999", "0.1234", "$123,456.78", "r" * 63):
        assert _is_there(part, text), part


def _is_there(part: str, text: str) -> bool:
    """Are its characters there in order, perhaps in several lines of one column?"""
    rest = iter(text)
    return all(character in rest for character in part)
