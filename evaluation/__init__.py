"""Where a model meets its judges: statistics on results, tables, figures, the page that shows them.

    detection     do scores tell data apart? AUROC and the like, with intervals and tests
    samples       how good is what a model produces?
    calibration   is the inference right?
    figures       curves, bars, the bracket of `bdmc`
    report        pages: `report.Report`; called, `report(...)` writes the page of an evaluation

Each is imported when it is asked for, but for `report`.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from probgen.evaluation import report as _pages

__all__ = ["assessment", "calibration", "detection", "figures", "report", "samples"]


def _verb() -> Any:
    return importlib.import_module("probgen.evaluation.assessment").report


class _CallablePackage(ModuleType):
    # A package that is also a verb: `evaluation.report(...)` is `assessment.report(...)`. Help asks
    # for its text and signature, and gets the verb's, without `assessment` imported before that.

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        verb = _verb()
        text = f"report{inspect.signature(verb)}\n\n{inspect.getdoc(verb)}"
        return f"{text}\n\nAlso a package. {self.__dict__['__doc__']}"

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _verb()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_verb())


_pages.__class__ = _CallablePackage
report = _pages


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"probgen.evaluation.{name}")
    raise AttributeError(f"module 'probgen.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
