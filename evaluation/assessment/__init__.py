"""The evaluation page: what a model makes of its own data and of others, in numbers and in words.

`report` writes it (also as `probgen.evaluation.report(...)`); `run` is what `probgen evaluate`
calls: a saved run and words for data in, a page out.
"""

from probgen.evaluation.assessment.command import run, split_table
from probgen.evaluation.assessment.material import Material, gather
from probgen.evaluation.assessment.page import report, sections
from probgen.evaluation.assessment.parts import (
    detection_blocks,
    histogram_blocks,
    image_blocks,
    likelihood_blocks,
    verdict_blocks,
)
from probgen.evaluation.assessment.verdict import SetVerdict, limits, summary, verdicts
from probgen.evaluation.detection.scores import count_distinct

__all__ = [
    "Material",
    "SetVerdict",
    "count_distinct",
    "detection_blocks",
    "gather",
    "histogram_blocks",
    "image_blocks",
    "likelihood_blocks",
    "limits",
    "report",
    "run",
    "sections",
    "split_table",
    "summary",
    "verdict_blocks",
    "verdicts",
]
