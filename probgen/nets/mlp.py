"""Multilayer perceptrons: from any event shapes to an array, or to several by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from probgen.errors import DeclarationError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import NonNegative, Width
from probgen.nets.base import (
    Activation,
    Array,
    EventAxes,
    Heads,
    Key,
    Params,
    Shape,
    activation,
    init_layer,
    numbered,
    scale_before,
)
from probgen.nets.layers import Dense
from probgen.nets.norms import SpectralNorm
from probgen.nets.weight_norm import WeightNorm


@declaration
class MLP:
    """Dense layers with an activation between them: inputs flattened and concatenated -> `out`.

    Without `in_ndim` an input's event axes are found from the right: as many trailing axes as
    multiply to the first layer's size; leading axes of several inputs broadcast (particles of one
    of them). Give `in_ndim` where that is ambiguous: a scalar event, event axes of size one on the
    left, or a net called outside the data plate on several vectors.

    Attributes:
        hidden: widths of the hidden layers; () is one affine map.
        out: a size, an event shape, or () for a number per datum.
        heads: None, or names: the output is then a dict of arrays, each of shape `out`.
        activation: its name.
        in_ndim: number of event axes, of every input or of each.
        out_scale: `init_scale` of the last layer.
        spectral: divide every weight by its largest singular value; see `SpectralNorm`.
        weight_norm: length and direction of weights apart, started from data; see `WeightNorm`.
    """

    hidden: tuple[Width, ...] = (256, 256)
    out: Width | tuple[Width, ...] = 1
    heads: Heads = None
    activation: Activation = "relu"
    in_ndim: EventAxes = None
    out_scale: NonNegative = 1.0
    spectral: bool = False
    weight_norm: bool = False

    def __post_init__(self) -> None:
        fits = not (self.spectral and self.weight_norm)
        require(fits, self, "at most one of them", "spectral", "weight_norm")

    @property
    def wants_data(self) -> bool:
        return self.weight_norm

    def _layers(self) -> list[tuple[str, Any]]:
        """(name, layer) in order; activations go between."""
        scale = scale_before(self.activation)
        layers: list[tuple[str, Any]] = [
            (numbered("layer", i, len(self.hidden)), Dense(width, init_scale=scale))
            for i, width in enumerate(self.hidden)
        ]
        size = head_size(self.out, self.heads)
        layers.append(("out", Dense(size, init_scale=self.out_scale)))
        if self.weight_norm:
            return [(name, WeightNorm(layer)) for name, layer in layers]
        return [(name, SpectralNorm(layer) if self.spectral else layer) for name, layer in layers]

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        size = sum(math.prod(shape) for shape in shapes)
        h: Any = None
        if data is not None:
            h = (join(f"{type(self).__name__}.init", data, size, self.in_ndim),)
        params = {}
        for name, layer in self._layers():
            params[name], h = init_layer(layer, key, ((size,),), h)
            h = None if h is None else (activation(self.activation)(*h),)
            size = layer.out_shape((size,))[0]
        return params

    def apply(self, params: Params, *inputs: Array) -> Any:
        layers = self._layers()
        first = params[layers[0][0]]
        if "folded" in first:
            h = first["folded"]
        else:
            size = first.get("inner", first)["weight"].shape[0]
            h = join(f"{type(self).__name__}.apply", inputs, size, self.in_ndim)
            h = layers[0][1].apply(first, h)
        act = activation(self.activation)
        for name, layer in layers[1:]:
            h = layer.apply(params[name], act(h))
        return split(h, self.out, self.heads)

    def fold(self, params: Params, *inputs: Array) -> tuple[Params, Array]:
        """(parameters without the first layer's, that layer's output [*lead, width]) for inputs
        that stay: `apply` takes {..., first layer: {"folded": output}} and asks no more for x.

        Raises:
            DeclarationError: a first layer whose output is not linear in its weights.
        """
        name, layer = self._layers()[0]
        if self.spectral or self.weight_norm:
            raise DeclarationError(
                "MLP.fold: got spectral or weight_norm, expected a plain linear first layer."
            )
        where, size = f"{type(self).__name__}.fold", params[name]["weight"].shape[0]
        h = layer.apply(params[name], join(where, inputs, size, self.in_ndim))
        return {k: v for k, v in params.items() if k != name}, h

    def first_layer(self) -> str:
        """Name of the first layer among the parameters."""
        return self._layers()[0][0]

    def out_shape(self, *shapes: Shape) -> Shape:
        return event_shape(self.out)


@declaration
class MLPEnergy:
    """A number per datum: [..., *event] -> [...], minus a log density up to a constant.

    Attributes:
        hidden: widths of the hidden layers.
        activation: its name; a smooth one gives Langevin dynamics a continuous score.
        in_ndim: as in `MLP`.
        spectral: as in `MLP`.
    """

    hidden: tuple[Width, ...] = (256, 256)
    activation: Activation = "silu"
    in_ndim: EventAxes = None
    spectral: bool = False

    def _net(self) -> MLP:
        return MLP(
            self.hidden,
            (),
            activation=self.activation,
            in_ndim=self.in_ndim,
            spectral=self.spectral,
        )

    def init(self, key: Key, *shapes: Shape) -> Params:
        return self._net().init(key, *shapes)

    def apply(self, params: Params, *inputs: Array) -> Array:
        return self._net().apply(params, *inputs)

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()


# ---- outputs and inputs, shared with the convolutional nets --------------------------------------


def event_shape(out: int | tuple[int, ...]) -> Shape:
    """`out` as a shape: 16 is (16,)."""
    return (out,) if isinstance(out, int) else tuple(out)


def head_size(out: int | tuple[int, ...], heads: tuple[str, ...] | None) -> int:
    """Numbers per datum that the last layer must give."""
    return math.prod(event_shape(out)) * (1 if heads is None else len(heads))


def split(flat: Array, out: int | tuple[int, ...], heads: tuple[str, ...] | None) -> Any:
    """[..., size] as [..., *out], or as a dict of them, the heads one after another."""
    shape, lead = event_shape(out), tuple(flat.shape[:-1])
    if heads is None:
        return ops.reshape(flat, (*lead, *shape))
    size = math.prod(shape)
    return {
        name: ops.reshape(flat[..., i * size : (i + 1) * size], (*lead, *shape))
        for i, name in enumerate(heads)
    }


def join(
    where: str, inputs: Sequence[Array], size: int, in_ndim: int | tuple[int, ...] | None
) -> Array:
    """Inputs with their event axes flattened, side by side: [*lead, size].

    Leading axes broadcast. Without `in_ndim` they are taken to be equal where that fits, and else
    the one way in which the event axes have `size` numbers in all.

    Raises:
        ShapeError: the event axes do not multiply to `size`, or do so in several ways.
    """
    shapes = [tuple(x.shape) for x in inputs]
    ndims = _event_ndims(shapes, size, in_ndim)
    if ndims is None:
        raise ShapeError(
            f"{where}: got inputs of shapes {shapes}, expected leading axes that broadcast and "
            f"trailing axes of {size} numbers in all, as declared by `init`; reshape the inputs, "
            "or say how many axes an event has (in_ndim)."
        )
    leads = [shape[: len(shape) - n] for shape, n in zip(shapes, ndims, strict=True)]
    flat = [
        x if n == 1 else ops.reshape(x, (*lead, math.prod(x.shape[len(lead) :])))
        for x, n, lead in zip(inputs, ndims, leads, strict=True)
    ]
    if len(flat) == 1:
        return flat[0]
    lead = _broadcast(leads)
    if lead is None:
        raise ShapeError(
            f"{where}: got leading axes {leads}, expected axes that broadcast; check in_ndim."
        )
    return ops.concatenate([ops.broadcast_to(x, (*lead, x.shape[-1])) for x in flat], axis=-1)


def _event_ndims(
    shapes: list[Shape], size: int, in_ndim: int | tuple[int, ...] | None
) -> list[int] | None:
    """How many trailing axes of each input are its event; None if nothing fits."""
    if in_ndim is not None:
        ndims = [in_ndim] * len(shapes) if isinstance(in_ndim, int) else list(in_ndim)
        fits = len(ndims) == len(shapes) and all(
            n <= len(s) for n, s in zip(ndims, shapes, strict=True)
        )
        return ndims if fits and _numbers(shapes, ndims) == size else None
    # Most leading axes first, but an event of one number as the last axis before none at all.
    leads = range(min(len(s) for s in shapes), -1, -1) if shapes else ()
    candidates = [[len(s) - b for s in shapes] for b in leads]
    candidates.sort(key=lambda ndims: len(shapes) == 1 and ndims[0] == 0)
    for ndims in candidates:
        heads = {s[: len(s) - n] for s, n in zip(shapes, ndims, strict=True)}
        if _numbers(shapes, ndims) == size and len(heads) == 1:
            return ndims
    if len(shapes) == 1:
        return None
    every = map(list, itertools.product(*(range(len(s) + 1) for s in shapes)))
    fitting = [n for n in every if _numbers(shapes, n) == size and _leads_fit(shapes, n)]
    return fitting[0] if len(fitting) == 1 else None


def _numbers(shapes: list[Shape], ndims: list[int]) -> int:
    """How many numbers the events have in all."""
    return sum(math.prod(s[len(s) - n :]) for s, n in zip(shapes, ndims, strict=True))


def _leads_fit(shapes: list[Shape], ndims: list[int]) -> bool:
    leads = [s[: len(s) - n] for s, n in zip(shapes, ndims, strict=True)]
    return _broadcast(leads) is not None


def _broadcast(leads: list[Shape]) -> Shape | None:
    length = max(map(len, leads))
    padded = [(1,) * (length - len(lead)) + lead for lead in leads]
    result = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    fits = all(n in (1, m) for lead in padded for n, m in zip(lead, result, strict=True))
    return result if fits else None
