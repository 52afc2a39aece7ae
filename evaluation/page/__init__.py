"""Pages: what a model makes of its own data and of others, in numbers, pictures and words.

    Report("Title").add(Section("Learning curves", Figure(...))).save("runs/x/report.html")

A `Report` is one HTML file that stands by itself, with the same numbers as JSON beside it. `blocks`
are what a section is made of, `document` puts them together, `drawing` makes SVG of figures and
formulas, `plates` draws a model's graph. `report` (also `probgen.evaluation.report`) writes the
page of an evaluation from them; `run` is what `probgen evaluate` calls: a saved run and words for
data in, a page out.
"""

from probgen.evaluation.detection.scores import count_distinct
from probgen.evaluation.page.blocks import (
    Block,
    Code,
    Figure,
    Folded,
    Formula,
    ImageRows,
    Number,
    Numbers,
    Paragraph,
    Row,
    Table,
)
from probgen.evaluation.page.command import run, split_table
from probgen.evaluation.page.document import Report, Section
from probgen.evaluation.page.evaluation_page import report, sections
from probgen.evaluation.page.gathered import GatheredTables, gather
from probgen.evaluation.page.section_blocks import (
    detection_blocks,
    histogram_blocks,
    image_blocks,
    likelihood_blocks,
    verdict_blocks,
)
from probgen.evaluation.page.shards import merged
from probgen.evaluation.page.text import with_error
from probgen.evaluation.page.verdict import SetVerdict, limits, summary, verdicts

__all__ = [
    "Block",
    "Code",
    "Figure",
    "Folded",
    "Formula",
    "ImageRows",
    "GatheredTables",
    "Number",
    "Numbers",
    "Paragraph",
    "Report",
    "Row",
    "Section",
    "SetVerdict",
    "Table",
    "count_distinct",
    "detection_blocks",
    "gather",
    "histogram_blocks",
    "image_blocks",
    "likelihood_blocks",
    "limits",
    "merged",
    "report",
    "run",
    "sections",
    "split_table",
    "summary",
    "verdict_blocks",
    "verdicts",
    "with_error",
]
