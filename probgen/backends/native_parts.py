"""What both adapters say of native programs: `param`s, distributions, plates and statements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

SIZE = (
    "plate {!r}: got the size {}, expected that of the batch, {}; take it from the data: "
    'plate("data", len(x)), or plate("data", N, subsample_size=len(x)).'
)
SCALE = (
    "site {!r}: its log-probability is scaled by {}, expected none but that of a subsampled plate; "
    "weigh the KL by ELBO(kl_weight=...) instead."
)


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

    @property
    def is_normalized(self) -> bool:
        """Whether its density integrates to one."""
        return self.name != "ImproperUniform"

    def __repr__(self) -> str:
        return f"{self.name}(...)"


class ScaledPlate:
    """A plate and the scale of what stands in it, as one context."""

    def __init__(self, plate: Any, scale: Any):
        self.plate, self.scale, self.size = plate, scale, plate.size

    def __enter__(self) -> None:
        self.scale.__enter__()
        self.plate.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.plate.__exit__(*error)
        self.scale.__exit__(*error)


def no_start(seed: int) -> Any:
    """The start of a param whose value is there already; never asked for."""
    raise AssertionError("a param is initialised where it is first met")


def statement(kind: str, frames: Iterable[Any]) -> dict[str, Any]:
    """What a run notes of a native statement; `frames` are the plates that it stands in."""
    return {"kind": kind, "plates": tuple(f.name for f in frames), "where": "?"}


def sample_statement(name: str, fn: Any, frames: Iterable[Any], is_fixed: bool) -> dict[str, Any]:
    """What a run notes of a native site of the distribution `fn`, called `name`."""
    return {
        **statement("sample", frames), "distribution": NamedDistribution(name),
        "event_shape": tuple(fn.event_shape), "is_fixed": is_fixed,
    }  # fmt: skip
