"""The report page in a real browser: drawn, without complaints, nothing wider than the window, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.report.page.page_data import make_page
from launcher.report.page.render import render_page
from launcher.report.receipt import make_receipt
from launcher.report.results import kept_rows, make_results
from tests.support import recorded_run as night
from tests.support.browser import CHROMIUM, look

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: make browser")
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 21, 27)"


@pytest.fixture(scope="module")
def html() -> str:
    events, metrics = night.events(), night.metrics()
    receipt = make_receipt("a-name-that-is-rather-long-for-a-phone-" + "x" * 40, events, metrics, [], night.END)
    rows = kept_rows(metrics)
    page = make_page(receipt, make_results(events, rows), events, rows, night.END, on_demand_usd_per_hour=32.0)
    return render_page(page)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", [360, 1400])
def test_the_page_is_drawn_and_fits(html: str, tmp_path: Path, width_px: int, dark: bool) -> None:
    seen = look(html, tmp_path, width_px, dark=dark)
    assert seen.complaints == []
    assert seen.window_px == width_px
    assert seen.page_px <= width_px
    assert seen.wide == []
    assert seen.charts == 7, "cost, loss, accuracy, rewards, speed, gradient, learning rate"
    assert seen.background == (DARK if dark else LIGHT)


def test_the_browser_sees_what_is_wrong(html: str, tmp_path: Path) -> None:
    broken = html.replace("<main>", '<main><p style="width:2000px">wide</p><script>nowhere()</script>')
    seen = look(broken, tmp_path, 360)
    assert seen.page_px > 360
    assert seen.wide
    assert any("nowhere" in complaint for complaint in seen.complaints)
