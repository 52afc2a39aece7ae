"""What a section is made of: each block knows its HTML and its data.

`html(key)` gets a key that is unique on the page, for ids. `data()` is merged into the section's
entry of the JSON file. Pictures arrive as SVG text (see `drawing`, `plates`) or as arrays.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

import numpy as np

from probgen.errors import ShapeError
from probgen.evaluation.page.drawing import formula_svg, isolate
from probgen.evaluation.page.text import escape, inline, slug, with_error
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Limit, NonNegative, Text, not_empty

Cell = str | int | Limit  # of a table


class Block(Protocol):
    """A part of a section."""

    def html(self, key: str) -> str: ...

    def data(self) -> dict[str, Any]: ...


@declaration
class Paragraph:
    """Running text, with `code` and **strong** marks; `small` for remarks."""

    text: str
    small: bool = False

    def html(self, key: str) -> str:
        return f'<p class="{"small" if self.small else "text"}">{inline(self.text)}</p>'

    def data(self) -> dict[str, Any]:
        return {}


@declaration
class Folded:
    """Paragraphs behind one line that opens them."""

    line: str
    texts: Sequence[str]

    def html(self, key: str) -> str:
        inside = "".join(f'<p class="text">{inline(text)}</p>' for text in self.texts)
        return f"<details><summary>{inline(self.line)}</summary>{inside}</details>"

    def data(self) -> dict[str, Any]:
        return {}


@declaration
class Number:
    """A number with its name, its unit, its standard error and a word on what it is.

    `value` may be text. The data hold `value`, `standard_error` and `unit` under the name's slug.
    """

    name: Text
    value: float | str
    unit: str = ""
    error: NonNegative | None = None
    note: str = ""

    def shown(self) -> str:
        """The value for reading, with its error."""
        return self.value if isinstance(self.value, str) else with_error(self.value, self.error)


@declaration
class Numbers:
    """The summary: numbers that are read first, as tiles; `lead` of them are set large."""

    numbers: Sequence[Number]
    lead: CountOrZero = 2

    def html(self, key: str) -> str:
        tiles = []
        for i, n in enumerate(self.numbers):
            unit = f'<span class="unit">{inline(n.unit)}</span>' if n.unit else ""
            note = f'<div class="note">{inline(n.note)}</div>' if n.note else ""
            kind = "tile main" if i < self.lead else "tile"
            tiles.append(
                f'<div class="{kind}"><dt>{inline(n.name)}</dt>'
                f'<dd><span class="value">{escape(n.shown())}</span> {unit}{note}</dd></div>'
            )
        return f'<dl class="tiles wide">{"".join(tiles)}</dl>'

    def data(self) -> dict[str, Any]:
        return {
            slug(n.name).replace("-", "_"): {
                "value": n.value,
                **({"standard_error": n.error} if n.error is not None else {}),
                **({"unit": n.unit} if n.unit else {}),
            }
            for n in self.numbers
        }


@declaration
class Table:
    """Rows of text or numbers under a header; the first column names the row. See `Figure.wide`.

    On a narrow screen three columns or more become a list under each row's name, every value
    beside its column's.

    Raises:
        ShapeError: a row is not as long as the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    name: Text = "table"
    wide: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ShapeError(
                    f"table {self.name!r}: got a row of {len(row)} cells, expected "
                    f"{len(self.header)} as in the header {list(self.header)}."
                )

    def html(self, key: str) -> str:
        def cell(value: str | float, column: str) -> str:
            # The column's name is a span of its own, which only the narrow layout shows.
            said = f'<span class="column" aria-hidden="true">{inline(column)}</span>'
            if isinstance(value, str):
                return f"<td>{said}<span>{inline(value)}</span></td>"
            shown = escape(with_error(float(value), None))
            return f'<td class="number">{said}<span>{shown}</span></td>'

        def line(row: Sequence[str | float]) -> str:
            name = f'<th scope="row">{inline(str(row[0]))}</th>'
            return f"<tr>{name}{''.join(map(cell, row[1:], self.header[1:]))}</tr>"

        head = "".join(f'<th scope="col">{inline(h)}</th>' for h in self.header)
        body = "".join(map(line, self.rows))
        caption = f"<caption>{inline(self.caption)}</caption>" if self.caption else ""
        kind = "scroll wide" if self.wide else "scroll half"
        kind += " many" if len(self.header) > 2 else ""
        return (
            f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(self.name)}">'
            f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def data(self) -> dict[str, Any]:
        return {self.name: [dict(zip(self.header, row, strict=True)) for row in self.rows]}


@declaration
class Figure:
    """A drawing as SVG text, with a caption and a description for those who do not see it.

    `wide` gives it the whole width; others stand side by side where there is room. `numbers` are
    what it shows, for the JSON file.
    """

    svg: str
    caption: str
    description: str
    wide: bool = False
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def html(self, key: str) -> str:
        return (
            f'<figure class="{"wide" if self.wide else "half"}">'
            f'<div class="drawing" role="img" aria-label="{escape(self.description)}">'
            f"{isolate(self.svg, key)}</div>"
            f"<figcaption>{inline(self.caption)}</figcaption></figure>"
        )

    def data(self) -> dict[str, Any]:
        return dict(self.numbers)


@declaration
class Formula:
    """A formula in LaTeX, set as outlines; `\\qquad` starts a new line."""

    latex: str
    caption: str = ""
    name: Text = "formula"

    def html(self, key: str) -> str:
        lines = [part.strip(" ,") for part in self.latex.split(r"\qquad")]
        drawn = "".join(f'<div class="line">{formula_svg(line)}</div>' for line in lines if line)
        caption = f"<figcaption>{inline(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="formula wide"><div role="math" aria-label="{escape(self.latex)}">'
            f"{drawn}</div>{caption}</figure>"
        )

    def data(self) -> dict[str, Any]:
        return {self.name: self.latex}


@declaration
class Code:
    """A command or a program, as it would be typed."""

    text: str
    name: Text = "code"

    def html(self, key: str) -> str:
        return f'<pre class="wide" tabindex="0"><code>{escape(self.text)}</code></pre>'

    def data(self) -> dict[str, Any]:
        return {self.name: self.text}


@declaration
class Row:
    """A row of pictures [n, h, w, 1 or 3] in [0, 1], with a label."""

    label: str
    images: np.ndarray


@declaration
class ImageRows:
    """Rows of small pictures under one another, each with its label at the left.

    `ink` is for black-and-white pictures whose ones are strokes: they are shown dark on the page's
    paper, and light on it in the dark scheme.

    Raises:
        ShapeError: pictures that are not [n, h, w, 1 or 3], or rows of unequal length.
    """

    rows: Annotated[Sequence[Row], not_empty]
    caption: str
    description: str
    ink: bool = False
    gap: CountOrZero = 2

    def __post_init__(self) -> None:
        shapes = [np.shape(row.images) for row in self.rows]
        if any(len(s) != 4 or s[3] not in (1, 3) for s in shapes):
            raise ShapeError(
                f"image rows: got shapes {shapes}, expected [n, height, width, 1 or 3] for each; "
                "add the channel axis with images[..., None]."
            )
        if len({s[0] for s in shapes}) > 1:
            raise ShapeError(
                f"image rows: got rows of {[s[0] for s in shapes]} pictures, expected equal "
                "lengths; cut the longer ones."
            )

    def html(self, key: str) -> str:
        labelled = any(row.label for row in self.rows)
        lines = []
        for row in self.rows:
            strip = np.concatenate(
                [np.pad(_clean(x), ((0, 0), (0, self.gap), (0, 0))) for x in row.images], axis=1
            )[:, : -self.gap or None]
            label = f'<span class="label">{inline(row.label)}</span>' if labelled else ""
            height, width = strip.shape[:2]
            source = _png(strip, self.ink)
            lines.append(f'{label}<img alt="" width="{width}" height="{height}" src="{source}">')
        kind = f"strips{' labelled' if labelled else ''}{' ink' if self.ink else ''}"
        return (
            f'<figure class="wide"><div class="{kind}" role="img" '
            f'aria-label="{escape(self.description)}">{"".join(lines)}</div>'
            f"<figcaption>{inline(self.caption)}</figcaption></figure>"
        )

    def data(self) -> dict[str, Any]:
        return {}


def _clean(image: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(image, np.float64), 0.0, 1.0)


def _png(image: np.ndarray, ink: bool) -> str:
    """[h, w, c] in [0, 1] as a data address; grey in 32 levels, enough for the eye."""
    from PIL import Image

    if image.shape[2] == 1:
        grey = 1.0 - image[..., 0] if ink else image[..., 0]
        levels = (np.round(grey * 31) * (255 / 31)).astype(np.uint8)
        picture = Image.fromarray(levels, "L").quantize(32)
    else:
        picture = Image.fromarray(np.round(image * 255).astype(np.uint8), "RGB")
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
