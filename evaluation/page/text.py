"""Text on its way into a page: escaping, two marks, numbers with their errors, plain JSON values.

The marks are `code` between backquotes and **strong** between double stars; all else is escaped.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from probgen.language.declared import checked
from probgen.language.kinds import Rule


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool)


Real = Annotated[Any, Rule("a number", _is_number, alone=True)]  # NaN is shown as what it is
MINUS = "\N{MINUS SIGN}"


def escape(text: str) -> str:
    """Text as HTML shows it, also inside an attribute's quotes."""
    return html.escape(text, quote=True)


def inline(text: str) -> str:
    """Escaped text with its `code` and **strong** marks turned into tags."""
    out = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", out)


def slug(title: str) -> str:
    """A title as an anchor: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def number(value: float, decimals: int | None = None) -> str:
    """A number for reading: thousands apart, a true minus sign, three digits that count.

    Example:
        >>> number(1234567), number(-98.4321), number(0.01234)
        ('1,234,567', '−98.4', '0.0123')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else (f"{MINUS}∞" if value < 0 else "∞")
    if decimals is None:
        whole = float(value).is_integer()
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        decimals = 0 if whole else max(0, 2 - magnitude)
    return f"{value:,.{decimals}f}".replace("-", MINUS)


@checked
def with_error(value: Real, error: Real | None) -> str:
    """`value ± error`, the error with two digits that count, and the value with as many decimals.

    Example:
        >>> with_error(-98.4321, 0.8712), with_error(-98.4321, 12.3), with_error(3.0, None)
        ('−98.43 ± 0.87', '−98 ± 12', '3')
    """
    if error is None or not math.isfinite(error) or error <= 0:
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{number(value, decimals)} ± {number(error, decimals)}"


def plain(value: Any) -> Any:
    """A value as JSON knows it: arrays as lists, numbers that are not finite as null.

    Raises:
        TypeError: the value holds something that JSON has no word for.
    """
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(
        f"report: got {type(value).__name__} as data, expected numbers, text, arrays, lists or "
        "dicts of them."
    )
