"""Which parts of a net have no second derivative, told by their types.

A rectifier is linear on both sides of its corner: of an energy made of it the Hessian reads 0
almost everywhere, the gradient jumps, and whatever is computed from curvature is nonsense. What a
net of one's own does in its `apply` has no type, and is not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from probgen.errors import DeclarationError
from probgen.nets.base import ACTIVATIONS

NAMES = frozenset({"relu", "leaky_relu"})  # of ACTIVATIONS
TYPES = frozenset(
    {
        "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "Hardshrink", "Hardsigmoid",
        "Hardswish", "Hardtanh", "LeakyReLU", "MaxPool1d", "MaxPool2d", "MaxPool3d", "Maxout",
        "PReLU", "RReLU", "ReLU", "ReLU6", "Softshrink", "Threshold",
    }
)  # fmt: skip
SMOOTH = tuple(sorted(set(ACTIVATIONS) - NAMES))


def require_smooth(net: Any, who: str) -> None:
    """Refuses a net with parts that have no second derivative.

    Raises:
        DeclarationError: names them.
    """
    found = sorted(set(corners(net)))
    if found:
        raise DeclarationError(
            f"{who}: got a net with {', '.join(found)}, whose gradient jumps, expected smooth "
            f"activations, {', '.join(SMOOTH)}: the density is computed from second derivatives, "
            'which would read 0; take activation="silu", and average pooling.'
        )


def corners(part: Any, field: str = "") -> Iterator[str]:
    """Names of what is not smooth in a declaration, or in another library's module."""
    if isinstance(part, str):
        if field in ("activation", "layers") and part in NAMES:
            yield part
    elif type(part).__name__ in TYPES:
        yield type(part).__name__
    elif callable(getattr(part, "modules", None)):  # a torch.nn.Module
        yield from (type(m).__name__ for m in part.modules() if type(m).__name__ in TYPES)
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from corners(value, field)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from corners(value, field)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for each in dataclasses.fields(part):
            yield from corners(getattr(part, each.name, None), each.name)
    elif getattr(part, "__name__", "") in NAMES:  # a function, such as jax.nn.relu
        yield part.__name__
