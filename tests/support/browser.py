"""A headless Chromium, for pages that people look at: what it draws, what it complains of, what doesn't fit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
TIMEOUT_S = 120.0
HEIGHT_PX = 2800
LOOK = """<script>addEventListener("load", function () { setTimeout(function () {
  var page = document.documentElement, wide = [];
  document.querySelectorAll("body *").forEach(function (one) {
    if (one.closest(".scroll, .track, .u-wrap, script, style")) return;
    if (one.getBoundingClientRect().right > page.clientWidth + 1) wide.push(one.tagName + "." + one.className);
  });
  var inked = Array.from(document.querySelectorAll("canvas")).filter(function (one) {
    var pixels = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
    return pixels.some(function (value) { return value !== 0; });
  });
  parent.postMessage(JSON.stringify({ page_px: page.scrollWidth, window_px: innerWidth, wide: wide, charts: inked.length,
    background: getComputedStyle(document.body).backgroundColor }), "*");
}, 300); });</script>"""
"""Runs in the page, which is in a frame: a headless window is never narrower than 500 px."""


class Look(NamedTuple):
    """What the browser saw."""

    page_px: int
    """Width of what is laid out; more than `window_px` means that it scrolls sideways."""
    window_px: int
    wide: list[str]
    """Elements that reach beyond the window."""
    charts: int
    """Canvases with something drawn on them."""
    background: str
    complaints: list[str]
    """What the console said."""


def look(html: str, folder: Path, width_px: int, *, dark: bool = False, picture: Path | None = None) -> Look:
    """Open the page in a window of this width; `picture` is where a screenshot goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.html").write_text(html.replace("</body>", LOOK + "</body>"), encoding="utf-8")
    harness = folder / "harness.html"
    harness.write_text(
        f"""<body style="margin:0"><iframe src="page.html" style="border:0;width:{width_px}px;height:{HEIGHT_PX}px"></iframe>
        <script>addEventListener("message", function (told) {{ document.title = told.data; }});</script>"""
    )
    options = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(500, width_px)},{HEIGHT_PX}", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    done = _run([*options, "--dump-dom", harness.as_uri()])
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, f"the page never answered: {done.stderr[-2000:]}"
    if picture is not None:
        _run([*options, f"--screenshot={picture}", harness.as_uri()])
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Look(**json.loads(title[1].replace("&quot;", '"')), complaints=complaints)


def _run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CHROMIUM, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
