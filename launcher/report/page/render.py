"""Render the page as one self-contained file that needs no network and no server."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from launcher.report.page.page_data import PageData
from launcher.report.run_tables import seconds

_ASSETS = files("launcher.report.page") / "assets"
UPLOT = "uPlot-1.6.32.iife.min.js"
"""The charts, https://github.com/leeoniya/uPlot, MIT; unchanged from its package, see `assets/README.md`."""


def render_page(page: PageData) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": seconds, "usd": lambda value: f"${value:,.2f}"}
    charts = [chart.model_dump(mode="json") for chart in page.charts]
    return environment.get_template("page.html.j2").render(
        page=page,
        receipt=page.receipt,
        results=page.results,
        charts=charts,
        style=_inlined("uPlot.min.css") + _inlined("page.css"),
        script=_inlined(UPLOT) + _inlined("page.js"),
    )


def _inlined(name: str) -> Markup:
    return Markup(_read(name))  # noqa: S704  # our own files, not the run's


def _read(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
