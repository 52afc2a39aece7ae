"""Where a model meets its judges: statistics on results, tables, figures, the page that shows them.

    detection     do scores tell data apart? AUROC and the like, with intervals and tests
    samples       how good is what a model produces?
    calibration   is the inference right?
    report        pages: `report.Report`; called, `report(...)` writes the page of an evaluation

Each is imported when it is asked for, but for `report`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from probgen.evaluation import report as _pages

__all__ = ["assessment", "calibration", "detection", "report", "samples"]


class _CallablePackage(ModuleType):
    """A package that is also a verb: `evaluation.report(...)` is `assessment.report(...)`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("probgen.evaluation.assessment").report(*args, **options)


_pages.__class__ = _CallablePackage
report = _pages


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"probgen.evaluation.{name}")
    raise AttributeError(f"module 'probgen.evaluation' has no attribute {name!r}")
