"""The weight norm of a layer: length and direction of its weights learned apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probgen.errors import DeclarationError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, Positive
from probgen.nets.base import Array, Key, Params, Shape, out_shape
from probgen.nets.norms import is_spectral

STILL = 1e-6  # a standard deviation below which a unit does not move with the data


@declaration
class WeightNorm:
    """A layer whose weight is g v / |v|, a vector v and a length g for each output.

    Parameters are {"inner": the layer's own, its weight the v, "scale": g, [out]}; a convolution's
    weight counts as the matrix [kh kw cin, out]. `init` gives the layer without it, g = |v|; from
    data, the outputs t = x v / |v| of a first batch, it gives those outputs mean 0 and the standard
    deviation s = `start_scale`:

        g = s / sd(t),    bias = -s mean(t) / sd(t)

    A unit that the batch does not move keeps g = |v|. `fit` initialises so, from the first batch,
    what has no parameters yet.

    Attributes:
        net: a layer with a "weight" whose last axis is its output: Dense, Conv.
        start_scale: s.

    Source: Salimans & Kingma 2016, arXiv:1602.07868, equations 2, 5 and 6.
    """

    net: AnyNet
    start_scale: Positive = 1.0

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        inner = self.net.init(key, *shapes)
        if "weight" not in inner:
            raise DeclarationError(
                f"WeightNorm: got {type(self.net).__name__} with parameters {sorted(inner)}, "
                "expected a 'weight' among them; wrap Dense or Conv."
            )
        v = np.asarray(inner["weight"])
        length = np.sqrt((v.astype(np.float64) ** 2).sum(tuple(range(v.ndim - 1))))
        params = {"inner": inner, "scale": length.astype(np.float32)}
        return params if data is None else self.started(params, *data)

    def started(self, params: Params, x: Array) -> Params:
        """Parameters with the lengths and the bias that a batch x asks for."""
        unit = {**params, "scale": np.ones_like(params["scale"])}
        if "bias" in params["inner"]:
            bias = np.zeros_like(params["inner"]["bias"])
            unit["inner"] = {**params["inner"], "bias": bias}
        t = self.apply({k: _on(v, x) for k, v in unit.items()}, x)
        axes = tuple(range(len(t.shape) - 1))
        sd = ops.std(t, axis=axes)
        moves = sd > STILL
        scale = ops.where(
            moves, self.start_scale / ops.where(moves, sd, 1.0), _on(params["scale"], x)
        )
        if "bias" not in params["inner"]:
            return {**params, "scale": scale}
        bias = -ops.mean(t, axis=axes) * scale
        return {"inner": {**params["inner"], "bias": bias}, "scale": scale}

    def apply(self, params: Params, x: Array) -> Array:
        return self.net.apply(params["inner"] | {"weight": _weight(params)}, x)

    def out_shape(self, *shapes: Shape) -> Shape:
        if hasattr(self.net, "out_shape"):
            return tuple(self.net.out_shape(*shapes))
        return out_shape(self.net, self.net.init(np.random.default_rng(0), *shapes), *shapes)


def _weight(params: Params) -> Array:
    """g v / |v|."""
    v = params["inner"]["weight"]
    length = ops.sqrt(ops.sum(v * v, axis=tuple(range(len(v.shape) - 1))))
    return v * (params["scale"] / length)


def kernels(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Array]]:
    """(path of a layer, its weight as the matrix [inputs, outputs]) of a net's layers, as they are
    applied: of a weight norm g v / |v|; those under a spectral norm are left out."""
    if not isinstance(params, dict) or is_spectral(params):
        return
    if set(params) == {"inner", "scale"} and "weight" in params["inner"]:
        weight = _weight(params)
    else:
        weight = params.get("weight")
        for name in sorted(params):
            yield from kernels(params[name], (*path, name))
    if weight is not None and len(weight.shape) > 1:
        yield path, ops.reshape(weight, (-1, weight.shape[-1]))


def _on(value: Any, like: Array) -> Any:
    if isinstance(value, dict):
        return {k: _on(v, like) for k, v in value.items()}
    return ops.asarray_like(value, like)
