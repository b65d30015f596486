"""The report page: its figures by hand, its text as HTML. A browser looks at it in tests/integration/test_report_page.py."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files

import pytest

from checkpoints.run_log.metrics import StepMetrics
from launcher.report.page.page_data import MAX_POINTS, PageData, cost_chart, make_page, step_charts, uninterrupted_h
from launcher.report.page.render import UPLOT, render_page
from launcher.report.receipt import make_receipt
from launcher.report.results import kept_rows, make_results
from tests.support import recorded_run as night

VENDORED = {
    UPLOT: "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def page(run: str = "night") -> PageData:
    events, metrics = night.events(), night.metrics()
    receipt = make_receipt(run, events, metrics, [], night.END)
    rows = kept_rows(metrics)
    return make_page(receipt, make_results(events, rows), events, rows, night.END, on_demand_usd_per_hour=32.0)


def test_the_cost_grows_with_the_machines_that_are_up() -> None:
    chart = next(chart for chart in page().charts if chart.title == "Cost ($)")
    hours = uninterrupted_h(page().receipt)
    assert chart.x == pytest.approx((0.0, 1.41, 1.45, hours, 4.0))
    ours, on_demand = chart.lines
    spot = 1.41 * 9
    assert ours.values == pytest.approx((0.0, spot, spot, spot + (hours - 1.45) * 30, spot + 2.55 * 30))
    assert on_demand.values == pytest.approx(tuple(32.0 * min(hour, hours) for hour in chart.x))
    assert chart.marks == pytest.approx((1.4,))


def test_other_ways_are_priced_without_the_interruption() -> None:
    lines = {line.name: line.cost_usd for line in page().comparisons}
    hours = uninterrupted_h(page().receipt)
    assert lines["this run"] == pytest.approx(1.41 * 9 + 2.55 * 30)
    assert lines["on demand"] == pytest.approx(hours * 32)
    assert lines["the bound"] == pytest.approx(hours * 9)


def test_the_timeline_has_each_machine_and_what_it_did() -> None:
    rows = page().timeline
    assert [row.label for row in rows] == ["attempts", "gcp/us-central1-a spot", "gcp/europe-west4-b on demand"]
    bars = [bar for row in rows for bar in row.bars]
    assert [bar.kind for bar in bars] == ["startup", "training", "redone", "startup", "training", "machine", "machine"]
    assert all(0 <= bar.begin_h < bar.end_h <= 4.0 for bar in bars)


def test_curves_mark_where_an_attempt_ended_and_have_the_evaluation() -> None:
    loss = next(chart for chart in page().charts if chart.title == "Loss")
    assert loss.marks == (20.0,)
    assert loss.x == tuple(map(float, range(1, night.STEPS + 1)))
    curve, evaluation = loss.lines
    assert evaluation.points
    assert [value for value in evaluation.values if value is not None] == [0.61]
    assert None not in curve.values


def test_a_long_run_is_thinned_and_keeps_its_ends() -> None:
    metrics = [StepMetrics(1, 0, step, {"loss": float(step)}) for step in range(1, 10_001)]
    (chart,) = step_charts(make_receipt("r", [], [], [], night.END), [], kept_rows(metrics))
    assert len(chart.x) <= MAX_POINTS
    assert chart.x[:2] == (1.0, 8.0)
    assert chart.x[-1] == 9_997.0
    assert chart.lines[0].values[:2] == (4.0, 11.0)
    assert chart.lines[0].values[-1] == 9_998.5


def test_a_run_without_machines_has_no_cost() -> None:
    unpaid = [event for event in night.events() if "machine" not in event.kind]
    receipt = make_receipt("night", unpaid, night.metrics(), [], night.END)
    made = make_page(receipt, make_results(unpaid, {}), unpaid, {}, night.END)
    assert cost_chart(receipt, night.START, None) is None
    assert made.comparisons == ()
    assert "What it cost" not in render_page(made)


def test_an_empty_run_is_a_page_too() -> None:
    receipt = make_receipt("night", [], [], [], night.END)
    text = render_page(make_page(receipt, make_results([], {}), [], {}, night.END))
    assert "night" in text
    assert "Timeline" not in text


def test_the_page_asks_for_nothing_and_a_name_is_no_html() -> None:
    text = render_page(page(run="</script><img src=x onerror=alert(1)>"))
    outside = re.sub(r"<script.*?</script>|<style>.*?</style>", "", text, flags=re.DOTALL)
    assert "<img" not in text
    assert not re.search(r"https?:|//[a-z]|url\(", outside)
    assert "default-src 'none'" in text
    data = re.search(r'id="charts-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert [chart["title"] for chart in json.loads(data[1])][:2] == ["Cost ($)", "Loss"]


def test_the_vendored_library_is_the_published_one() -> None:
    assets = files("launcher.report.page") / "assets"
    found = {name: hashlib.sha256((assets / name).read_bytes()).hexdigest() for name in VENDORED}
    assert found == VENDORED
