"""Nets made of nets: one after another, and around a residual path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from probgen.errors import ShapeError
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, NonNegative, Width, not_empty
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    activation,
    check_last,
    init_layer,
    numbered,
    one_shape,
    out_shape,
    scale_before,
    wants_data,
)
from probgen.nets.layers import Conv, Dense
from probgen.nets.norms import GroupNorm, groups_for


@declaration
class Sequential:
    """Layers one after another; the first one takes all inputs. A text names an activation.

        Sequential((Conv(32, 4, 2), "silu", Reshape((-1,)), Dense(10)))

    Parameters are {"layer0": ..., "layer1": ...}; activations have none. A layer of one's own is
    run once on zeros during `init` to see its output shape, unless it has `out_shape(*shapes)`.

    Attributes:
        layers: nets and names of activations.
    """

    layers: Annotated[tuple[Activation | AnyNet, ...], not_empty]

    def _names(self) -> list[str]:
        return [numbered("layer", i, len(self.layers)) for i in range(len(self.layers))]

    @property
    def wants_data(self) -> bool:
        return any(wants_data(layer) for layer in self.layers if not isinstance(layer, str))

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        params = {}
        for name, layer in zip(self._names(), self.layers, strict=True):
            if isinstance(layer, str):
                data = None if data is None else (activation(layer)(*data),)
                continue
            params[name], data = init_layer(layer, key, shapes, data)
            shapes = (out_shape(layer, params[name], *shapes),)
        return params

    def apply(self, params: Params, *inputs: Array) -> Array:
        for name, layer in zip(self._names(), self.layers, strict=True):
            if isinstance(layer, str):
                inputs = (activation(layer)(*inputs),)
            else:
                inputs = (layer.apply(params[name], *inputs),)
        return inputs[0]


@declaration
class ResidualBlock:
    """x' = skip(x) + conv(act(norm(conv(act(norm(x))) + dense(act(time))))), as in DDPM.

    Inputs are an image [..., h, w, c] and optionally a time embedding [..., t]; the output is
    [..., h, w, out]. skip is the identity, or a 1 x 1 convolution when the channels change. The
    last convolution starts at `out_scale`: 0 makes the block start as its skip.

    Attributes:
        out: output channels.
        num_groups: of the group norms; the largest common divisor with the channels is taken.
        activation: its name.
        out_scale: `init_scale` of the last convolution.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, appendix B.
    """

    out: Width
    num_groups: Width = 8
    activation: Activation = "silu"
    out_scale: NonNegative = 0.0

    def _norm(self, channels: int) -> GroupNorm:
        return GroupNorm(groups_for(channels, self.num_groups))

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        h, w, cin = shapes[0]
        inner = (h, w, self.out)
        scale = scale_before(self.activation)
        params = {
            "norm0": self._norm(cin).init(key, (h, w, cin)),
            "conv0": Conv(self.out, init_scale=scale).init(key, (h, w, cin)),
            "norm1": self._norm(self.out).init(key, inner),
            "conv1": Conv(self.out, init_scale=self.out_scale).init(key, inner),
        }
        if cin != self.out:
            params["skip"] = Conv(self.out, 1).init(key, (h, w, cin))
        if len(shapes) == 2:
            params["time"] = Dense(self.out).init(key, shapes[1])
        return params

    def apply(self, params: Params, x: Array, time: Array | None = None) -> Array:
        check_last(self, x, params["conv0"]["weight"].shape[2], 3)
        if ("time" in params) != (time is not None):
            got, expected = ("no", "one") if time is None else ("a", "none")
            raise ShapeError(
                f"ResidualBlock.apply: got {got} time embedding, expected {expected} as declared "
                "by `init`; initialise with the shapes of all inputs that `apply` will get."
            )
        act = activation(self.activation)
        h = act(self._norm(x.shape[-1]).apply(params["norm0"], x))
        h = Conv(self.out).apply(params["conv0"], h)
        if time is not None:
            h = h + Dense(self.out).apply(params["time"], act(time))[..., None, None, :]
        h = act(self._norm(self.out).apply(params["norm1"], h))
        h = Conv(self.out).apply(params["conv1"], h)
        return h + (Conv(self.out, 1).apply(params["skip"], x) if "skip" in params else x)

    def out_shape(self, *shapes: Shape) -> Shape:
        h, w, _ = one_shape(self, shapes[:1], 3)
        if len(shapes) > 2 or (len(shapes) == 2 and len(shapes[1]) != 1):
            raise ShapeError(
                f"ResidualBlock.init: got event shapes {shapes}, expected [h, w, c] and at most a "
                "time embedding [t]; embed the time first (TimeEmbedding)."
            )
        return h, w, self.out
