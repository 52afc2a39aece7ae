"""A headless browser for tests: what a page looks like from inside, and what it complains about.

No driver and no DevTools: a page is put into a frame of a given width on a page of ours, whose
script measures it and leaves the findings in an attribute, and `--dump-dom` prints that.
"""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
)  # fmt: skip

MEASURE = """
addEventListener("load", () => {
  const d = document.getElementById("page").contentDocument, w = d.documentElement.clientWidth;
  const inside = e => e.closest(".scroll, pre");
  const wide = [...d.querySelectorAll("body *")].filter(
    e => !inside(e) && !e.closest("svg") && e.getBoundingClientRect().right > w + 1);
  const cut = [...d.querySelectorAll("svg text")].filter(e => {
    const t = e.getBoundingClientRect(), s = e.closest("svg").getBoundingClientRect();
    return t.left < s.left - 2 || t.right > s.right + 2 || t.top < s.top - 2 ||
      t.bottom > s.bottom + 2; });
  const small = [...d.querySelectorAll("svg text")].map(e => {
    const s = e.ownerSVGElement, k = s.getBoundingClientRect().width / s.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(e).fontSize) * k; });
  document.body.dataset.found = JSON.stringify({
    width: d.documentElement.scrollWidth, frame: w,
    wide: wide.map(e => e.tagName + "." + e.className), cut: cut.map(e => e.textContent),
    smallest: Math.min(...small, 99), svgs: d.querySelectorAll("svg").length,
    images: [...d.images].length, broken: [...d.images].filter(i => !i.naturalWidth).length,
    tables: d.querySelectorAll("table").length,
    scrolled: [...d.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel),
    ink: getComputedStyle(d.body).color,
    paper: getComputedStyle(d.body).backgroundColor });
});
"""


class Findings(NamedTuple):
    """`found`: what `MEASURE` saw; `console`: what the browser complained about."""

    found: dict
    console: list[str]


def find() -> str:
    """The browser's path; installs Debian's where that is possible, else skips the test."""
    known = shutil.which("chromium") or shutil.which("google-chrome")
    if known:
        return known
    script = subprocess.run(
        ["sh", str(ROOT / "tools" / "get_chromium.sh")],
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if script.returncode:
        reason = script.stderr.strip().splitlines()[-1:] or ["no reason given"]
        pytest.skip(f"no headless browser: {reason[0]}")
    return script.stdout.split()[-1]


def look(browser: str, page: str, width: int, *, dark: bool = False) -> Findings:
    """Opens the page's text in a frame `width` pixels wide and measures it."""
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "wrapper.html"
        frame = f'<iframe id="page" width="{width}" height="900" style="border:0" srcdoc="'
        wrapper.write_text(
            f'<!doctype html><body>{frame}{html.escape(page)}"></iframe><script>{MEASURE}</script>',
            encoding="utf-8",
        )
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        ran = subprocess.run(
            [
                browser,
                *FLAGS,
                *scheme,
                f"--user-data-dir={folder}/profile",
                "--window-size=1400,1000",
                "--dump-dom",
                wrapper.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=1200,
        )
    match = re.search(r'data-found="([^"]*)"', ran.stdout)
    assert match, f"the page was not measured: {ran.stderr[-2000:]}"
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Findings(json.loads(html.unescape(match[1])), console)
