"""The M-step of a linear decoder under Gaussian noise: a regression of the data on their latents.

    x_n = z_n W + b + sigma eps        z~ = (z, 1),  T = (W; b)

    T       = (sum_n E z~ z~^T)^-1 sum_n E z~ x_n^T
    sigma^2 = (1 / n D) sum_n [ |x_n - E z~ T|^2 + tr(T^T Cov(z~) T) ]

Probabilistic PCA, whatever the prior of z. Source: Tipping & Bishop 1999, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from probgen import nets, ops
from probgen.models.likelihoods import Likelihood, Normal

Array = Any
LEAST = 1e-6  # that a learned scale stays above its bound


def regression(decoder: Any, likelihood: Likelihood) -> Callable | None:
    """The M-step (`Maximises.maximiser`) of "decoder" and "likelihood" for latents "z" and data
    "x"; None where the decoder is not one affine map or the noise no Gaussian of one scale."""
    is_affine = isinstance(decoder, nets.MLP) and not (
        decoder.hidden or decoder.heads or decoder.spectral or decoder.weight_norm
    )
    if not is_affine or not isinstance(likelihood, Normal) or likelihood.scale == "predicted":
        return None

    def maximise(params: Mapping, batch: Mapping, latents: Mapping, weights: Array) -> dict:
        z, x = latents["z"], batch["x"]
        z = ops.reshape(z, (*weights.shape, -1))
        z = ops.concatenate([z, ops.ones_like(z[..., :1])], axis=-1)  # [C, n, d + 1]
        x = ops.reshape(x, (x.shape[0], -1))  # [n, D]
        mean = ops.einsum("cn,cni->ni", weights, z)
        off = z - mean
        spread = ops.einsum("cn,cni,cnj->ij", weights, off, off)
        root = ops.cholesky(ops.matmul(mean.swapaxes(0, 1), mean) + spread)
        half = ops.solve_triangular(root, ops.matmul(mean.swapaxes(0, 1), x))
        table = ops.solve_triangular(root.swapaxes(0, 1), half, lower=False)  # [d + 1, D]
        found = {"decoder": {"out": {"weight": table[:-1], "bias": table[-1]}}}
        if likelihood.scale == "learned":
            rest = ops.sum(ops.square(x - ops.matmul(mean, table)))
            rest = rest + ops.sum(table * ops.matmul(spread, table))
            scale = ops.sqrt(rest / (x.shape[0] * x.shape[1])) - likelihood.min_scale
            scale = ops.maximum(scale, LEAST)
            found["likelihood"] = {"value": scale + ops.log(-ops.expm1(-scale))}
        return found

    return maximise
