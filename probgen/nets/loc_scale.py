"""A location and a scale for each channel, started from the moments of a first batch."""

from __future__ import annotations

from collections.abc import Sequence

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Axes
from probgen.nets.base import Array, Key, Params, Shape, zeros
from probgen.nets.weight_norm import STILL


@declaration
class LocScale:
    """{"loc": [c], "log_scale": [c]} for events [..., c]: constants, whatever the input.

    Both start at zero; from data, a first batch of events, (x - loc) exp(-log_scale) has mean 0 and
    variance 1 in each channel of that batch. A channel that the batch does not move keeps scale 1.

    Attributes:
        in_ndim: number of event axes, the last of them channels.

    Source: Kingma & Dhariwal 2018, arXiv:1807.03039, section 3.1 (actnorm).
    """

    in_ndim: Axes = 1

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        if len(shapes) != 1 or len(shapes[0]) != self.in_ndim or self.in_ndim < 1:
            raise ShapeError(
                f"LocScale.init: got event shapes {[*shapes]}, expected one of {self.in_ndim} "
                "axes, the last of them channels; give in_ndim."
            )
        if data is None:
            return {name: zeros(shapes[0][-1]) for name in ("loc", "log_scale")}
        axes = tuple(range(data[0].ndim - 1))
        sd = ops.std(data[0], axis=axes)
        moved = ops.where(sd > STILL, sd, 1.0)
        return {"loc": ops.mean(data[0], axis=axes), "log_scale": ops.log(moved)}

    def apply(self, params: Params, *inputs: Array) -> Params:
        return params

    def out_shape(self, *shapes: Shape) -> Shape:
        return shapes[0][-1:]
