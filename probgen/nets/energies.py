"""Energies made of energies: products of densities, temperatures.

    p(x) ~ exp(-E_1(x)) exp(-E_2(x))    SumOfEnergies((E_1, E_2))       a product of densities
    p(x) ~ exp(-E(x) / T)               ScaledEnergy(E, 1 / T)          a temperature T of the tilt

The scale is a constant of the declaration; the parts' parameters are learned, or given by `init=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, not_empty
from probgen.nets.base import Array, Key, Params, Shape, numbered, wants_data


@declaration
class SumOfEnergies:
    """E(x) = E_1(x) + E_2(x) + ...: the product of the densities, each known up to a constant.

    Parameters are {"part0": those of the first, "part1": ...}.

    Attributes:
        parts: nets from one datum to a number.
    """

    parts: Annotated[tuple[AnyNet, ...], not_empty]

    def _named(self) -> list[tuple[str, Any]]:
        count = len(self.parts)
        return [(numbered("part", i, count), net) for i, net in enumerate(self.parts)]

    @property
    def wants_data(self) -> bool:
        return any(map(wants_data, self.parts))

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        more = {} if data is None else {"data": data}
        return {
            name: net.init(key, *shapes, **(more if wants_data(net) else {}))
            for name, net in self._named()
        }

    def apply(self, params: Params, *inputs: Array) -> Array:
        values = [net.apply(params[name], *inputs) for name, net in self._named()]
        total = values[0]
        for value in values[1:]:
            if tuple(value.shape) != tuple(total.shape):
                raise ShapeError(
                    f"SumOfEnergies.apply: got parts of shapes {[tuple(v.shape) for v in values]}, "
                    "expected one number per datum of each; give MLPs out=()."
                )
            total = total + value
        return total

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()


@declaration
class ScaledEnergy:
    """scale * E(x): at scale 1 / T the tilt exp(-E) at temperature T; 0 is the base itself.

    Parameters are those of the energy. The scale is of the tilt alone: a base keeps its own.

    Attributes:
        energy: a net from one datum to a number.
        scale: what it is multiplied by.
    """

    energy: AnyNet
    scale: float = 1.0

    @property
    def wants_data(self) -> bool:
        return wants_data(self.energy)

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        more = {"data": data} if data is not None and self.wants_data else {}
        return self.energy.init(key, *shapes, **more)

    def apply(self, params: Params, *inputs: Array) -> Array:
        return self.scale * self.energy.apply(params, *inputs)

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()
