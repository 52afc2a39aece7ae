"""Where a model meets its judges: statistics on results, tables, figures, the page that shows them.

    detection     do scores tell data apart? AUROC and the like, with intervals and tests
    posteriors    do several ways to one posterior agree, and what did each cost?
    samples       how good is what a model produces?
    subjects      are pictures faithful to a subject, and to a prompt?
    calibration   is the inference right?
    figures       curves, bars, the bracket of `bdmc`
    page          pages: blocks, sections and `page.Report`
    report(...)   writes the page of an evaluation

Each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = (
    "calibration", "demo", "detection", "figures", "page", "posteriors", "samples", "subjects",
)  # fmt: skip

__all__ = [*_ROOMS, "report"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"probgen.evaluation.{name}")
    if name == "report":
        return importlib.import_module("probgen.evaluation.page").report
    raise AttributeError(f"module 'probgen.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
