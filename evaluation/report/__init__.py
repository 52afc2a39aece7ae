"""Reports: one HTML file that stands by itself, and the same numbers as JSON beside it.

    Report("Title").add(Section("Learning curves", Figure(...))).save("runs/x/report.html")

`blocks` are what a section is made of, `page` puts them together, `drawing` makes SVG of figures
and formulas, `plates` draws a model's graph. What is worth reporting is decided elsewhere.
"""

from probgen.evaluation.report.blocks import (
    Block,
    Code,
    Figure,
    Formula,
    ImageRows,
    Number,
    Numbers,
    Paragraph,
    Row,
    Table,
)
from probgen.evaluation.report.page import Report, Section
from probgen.evaluation.report.text import with_error

__all__ = [
    "Block",
    "Code",
    "Figure",
    "Formula",
    "ImageRows",
    "Number",
    "Numbers",
    "Paragraph",
    "Report",
    "Row",
    "Section",
    "Table",
    "with_error",
]
