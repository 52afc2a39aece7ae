"""What native programs are made of, as declarations: their `param`s and their distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class NativeParam:
    """The declaration of a native `param`: its start is the native program's own business."""

    start: Callable[[int], Any]

    def init(self, key: np.random.Generator, *shapes: Any) -> Any:
        """Unconstrained initial value(s), numpy."""
        return self.start(int(key.integers(2**31)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NativeParam)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "param"


@dataclasses.dataclass(frozen=True)
class NamedDistribution:
    """A native distribution as a site's declaration: its name, and what describes it."""

    name: str

    def __repr__(self) -> str:
        return f"{self.name}(...)"
