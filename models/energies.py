"""The factor of an energy, -E of a site's value: a number per datum, or refused in words."""

from __future__ import annotations

from typing import Any

import probgen as pg
from probgen.errors import ShapeError
from probgen.language.run import current

Array = Any


def tilt(factor: str, name: str, energy: Any, value: Array, who: str) -> None:
    """Declares the factor exp(-E(value)), E the net of that name, inside the data plate.

    Raises:
        ShapeError: the net gives no number per datum.
    """
    out = pg.net(name, energy)(value)
    shape = tuple(getattr(out, "shape", ()))
    plates = len(current("tilt").active)
    if not 1 <= len(shape) <= plates or shape != tuple(value.shape)[: len(shape)]:
        got = f"the outputs {sorted(out)}" if isinstance(out, dict) else f"an array {list(shape)}"
        raise ShapeError(
            f"{who}: the energy {name!r}, {type(energy).__name__}, gives {got} for values of shape "
            f"{list(value.shape)}, expected one number per datum, without an axis of its own and "
            "without sums over data; use nets.MLPEnergy() or nets.ConvEnergy(), or give the net "
            "out=()."
        )
    pg.factor(factor, -out)
