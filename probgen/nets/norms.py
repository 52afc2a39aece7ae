"""Normalisation without batch statistics: group, layer, and the spectral norm of a weight.

A datum's output depends on no other datum, so a density written with these layers is a density
per datum.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from probgen.errors import DeclarationError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, Positive, Width, between
from probgen.nets.base import (
    Array,
    Key,
    Params,
    Shape,
    check_last,
    one_shape,
    ones,
    out_shape,
    zeros,
)


@declaration
class GroupNorm:
    """Channels in groups, each brought to mean 0 and variance 1 over its channels and pixels.

        y = scale (x - mean_g) / sqrt(var_g + epsilon) + offset

    Attributes:
        num_groups: must divide the channels; see `groups_for`.
        epsilon: added to the variance.
        in_ndim: number of event axes, the last of them channels: 3 for images, 1 for vectors.

    Source: Wu & He 2018, arXiv:1803.08494.
    """

    num_groups: Width = 8
    epsilon: Positive = 1e-5
    in_ndim: Annotated[int, between(1, 64)] = 3

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        channels = shapes[0][-1]
        return {"scale": ones(channels), "offset": zeros(channels)}

    def apply(self, params: Params, x: Array) -> Array:
        check_last(self, x, params["scale"].shape[0])
        return self._of(x, params["scale"], params["offset"])

    def normal(self, x: Array) -> Array:
        """x with mean 0 and variance 1 in each group, before scale and offset."""
        return self._of(x, None, None)

    def _of(self, x: Array, scale: Array | None, offset: Array | None) -> Array:
        lead = tuple(x.shape[: len(x.shape) - self.in_ndim])
        flat = ops.reshape(x, (*lead, math.prod(x.shape[len(lead) : -1]), x.shape[-1]))
        found = ops.group_norm(flat, self.num_groups, self.epsilon, scale, offset)
        return ops.reshape(found, tuple(x.shape))

    def out_shape(self, *shapes: Shape) -> Shape:
        shape = one_shape(self, shapes, self.in_ndim)
        if shape[-1] % self.num_groups:
            raise ShapeError(
                f"GroupNorm: got {shape[-1]} channels for num_groups={self.num_groups}, expected a "
                "multiple of it; choose a divisor of the channels."
            )
        return shape


def groups_for(channels: int, num_groups: int) -> int:
    """The largest number of groups that divides both, for channels of any number."""
    return math.gcd(channels, num_groups)


@declaration
class LayerNorm:
    """The last axis brought to mean 0 and variance 1, then scaled and offset.

    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    epsilon: Positive = 1e-5

    def init(self, key: Key, *shapes: Shape) -> Params:
        size = one_shape(self, shapes)[-1]
        return {"scale": ones(size), "offset": zeros(size)}

    def apply(self, params: Params, x: Array) -> Array:
        check_last(self, x, params["scale"].shape[0])
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        scale = 1.0 / ops.sqrt(ops.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        return centred * scale * params["scale"] + params["offset"]

    def out_shape(self, *shapes: Shape) -> Shape:
        return one_shape(self, shapes)


@declaration
class SpectralNorm:
    """A layer whose weight is divided by its largest singular value, so that it is 1-Lipschitz.

    Parameters are {"inner": the layer's own, "u": [out]}; a convolution's weight counts as the
    matrix [kh kw cin, out]. With u the right singular vector as known so far and v = W u / |W u|,
    the weight used is W / (v^T W u); gradients flow through W and not through u or v. `u` is a
    buffer: every algorithm leaves it to one power iteration after each step of its optimiser (see
    `probgen.nets.buffers`), and no optimiser, weight decay or moving average touches it; at the end
    of a fit it has converged. In a loop of one's own that is an explicit pure update:

        params = SpectralNorm(Dense(64)).update(params)        # or power_iterate(any params)

    `init` iterates to convergence.

    Attributes:
        net: a layer with a "weight" whose last axis is its output: Dense, Conv.

    Source: Miyato et al. 2018, arXiv:1802.05957, algorithm 1.
    """

    net: AnyNet

    def init(self, key: Key, *shapes: Shape) -> Params:
        inner = self.net.init(key, *shapes)
        if "weight" not in inner:
            raise DeclarationError(
                f"SpectralNorm: got {type(self.net).__name__} with parameters "
                f"{sorted(inner)}, expected a 'weight' among them; wrap Dense or Conv."
            )
        matrix = inner["weight"].reshape(-1, inner["weight"].shape[-1]).astype(np.float64)
        u = key.standard_normal(matrix.shape[1])
        for _ in range(50):
            u = matrix.T @ (matrix @ u)
            u = u / max(np.linalg.norm(u), 1e-12)
        return {"inner": inner, "u": u.astype(np.float32)}

    def apply(self, params: Params, x: Array) -> Array:
        weight = params["inner"]["weight"]
        matrix = ops.reshape(weight, (-1, weight.shape[-1]))
        u = ops.stop_gradient(params["u"])
        v = _unit(ops.matmul(ops.stop_gradient(matrix), u))
        sigma = ops.sum(v * ops.matmul(matrix, u))
        return self.net.apply(params["inner"] | {"weight": weight / sigma}, x)

    def update(self, params: Params, num_iterations: int = 1) -> Params:
        """The same parameters with `u` moved by power iterations."""
        return power_iterate(params, num_iterations)

    def out_shape(self, *shapes: Shape) -> Shape:
        if hasattr(self.net, "out_shape"):
            return tuple(self.net.out_shape(*shapes))
        return out_shape(self.net, self.net.init(np.random.default_rng(0), *shapes), *shapes)


def is_spectral(params: Params) -> bool:
    """Whether these are the parameters of a `SpectralNorm`, and not of a net around it."""
    return isinstance(params, dict) and set(params) == {"inner", "u"}


def power_iterate(params: Params, num_iterations: int = 1) -> Params:
    """Any tree of parameters with every spectral norm's `u` moved: u <- W^T W u, normalised.

    Args:
        params: arrays of a framework, or the numpy arrays of `init`; other leaves are unchanged.
        num_iterations: one after each optimisation step is customary.
    """
    if not isinstance(params, dict):
        return params
    if not is_spectral(params):
        return {name: power_iterate(child, num_iterations) for name, child in params.items()}
    weight, u = params["inner"]["weight"], params["u"]
    matrix = weight.reshape(-1, weight.shape[-1])
    for _ in range(num_iterations):
        u = _unit(matrix.T @ (matrix @ u))
    return {"inner": power_iterate(params["inner"], num_iterations), "u": u}


def _unit(vector: Array) -> Array:
    # The tiny term keeps a zero weight at zero instead of NaN.
    return vector / ((vector * vector).sum() + 1e-24) ** 0.5
