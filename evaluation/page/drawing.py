"""Drawings for a page: matplotlib figures and formulas as SVG that follows the page's colours.

A figure is drawn with the light palette's colours; `figure_svg` puts the page's colour variables in
their place, so that one drawing serves the light and the dark scheme. Nothing here is shown on a
screen, and matplotlib's own settings are as before afterwards.
"""

from __future__ import annotations

import functools
import io
import re
from typing import Any

from probgen.evaluation.page.text import escape
from probgen.views.palette import PALETTE


def figure_svg(figure: Any) -> str:
    """A matplotlib figure as SVG text: text stays text, colours are the page's variables."""
    import matplotlib

    out = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "probgen"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)  # it is page-wide
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    return _with_variables(text)


def _with_variables(text: str) -> str:
    for name, (light, _) in PALETTE.items():
        text = re.sub(light, f"var(--{name})", text, flags=re.I)
    return text


def isolate(svg: str, key: str) -> str:
    """The SVG with its ids made unique on a page by a prefix."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)


@functools.lru_cache(maxsize=256)
def formula_svg(latex: str, size: float = 19.0) -> str:
    """A line of LaTeX mathematics as one SVG path in the text's colour.

    What matplotlib's mathtext does not know is shown as source, in a `code` element.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    try:
        properties = FontProperties(math_fontfamily="cm")
        path = TextPath((0, 0), f"${latex}$", size=size, prop=properties)
        box = path.get_extents()
    except (ValueError, RuntimeError):
        return f"<code>{escape(latex)}</code>"
    if not len(path.vertices) or not box.width > 0:
        return f"<code>{escape(latex)}</code>"
    margin = 1.0
    width, height = box.width + 2 * margin, box.height + 2 * margin
    view = f"{box.x0 - margin:.2f} {-box.y1 - margin:.2f} {width:.2f} {height:.2f}"
    return (
        f'<svg class="formula" viewBox="{view}" width="{width:.0f}" height="{height:.0f}" '
        f'aria-hidden="true"><path d="{_path_data(path)}" fill="currentColor"/></svg>'
    )


def _path_data(path: Any) -> str:
    """A matplotlib path as the `d` of an SVG path; the vertical axis is turned around."""
    words = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for vertices, code in path.iter_segments(simplify=False, curves=True):
        numbers = " ".join(
            f"{v if i % 2 == 0 else -v:.2f}" for i, v in enumerate(vertices.tolist())
        )
        parts.append(words[int(code)] + (numbers if int(code) != 79 else ""))
    return "".join(parts)
