"""The exact E-step where a datum's latents are Gaussian given it, as in linear-Gaussian models.

There log p(x, z) is quadratic in z, so that its gradient is g(z) = g(0) - P z, and d + 1 gradients
tell it whole:

    P e_i = g(0) - g(e_i)        p(z | x) = N(m, P^-1),  P m = g(0)
    log p(x) = log p(x, m) + (d / 2) log 2 pi - (1 / 2) log |P|

Expectations are taken over 2 d points m +- sqrt(d) a_i, with A A^T = P^-1 and a weight of 1 / 2 d
each: of what is quadratic in z, as log p(x, z) is at other parameters too, these have the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.learner import all_params
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError
from probgen.inference.learn.e_steps import Exact, Expected, mean_log_prob, size_of
from probgen.language.declared import declaration

Array = Any
FAR = 1e-2  # how much of its gradient a log density may be off from quadratic


@declaration
class ExactGaussian:
    """The exact E-step for latents that are Gaussian given a datum: linear-Gaussian models.

    Probabilistic PCA, factor analysis, Kalman's models (`pg.scan`): all continuous latents of a
    datum have a log density that is quadratic in them. The posterior is found from gradients, one
    more than a datum has numbers, so that no matrix of the model need be known.

        ppca = Generator(
            dist.Normal(0, 1).expand([2]).to_event(1), nets.MLP((), out=4, in_ndim=1),
            likelihoods.Normal("learned"),
        )
        pg.fit(ppca, x, EM(ExactGaussian()), batch_size=None, num_steps=100, seed=0)

    Raises (by `EM`):
        AlgorithmError: discrete latents; a support that is not the real line; a log density that
            is not quadratic.
    """


class GaussianPosterior(Exact):
    """The E-step of `ExactGaussian`."""

    def __init__(self, bound: Bound):
        if bound.enumerated or not bound.latents:
            raise AlgorithmError(
                f"EM(ExactGaussian()): {bound.model.name!r} has the discrete latents "
                f"{list(bound.enumerated)}, expected continuous ones alone, Gaussian given a "
                "datum; use EM(Enumerate()), or chains, under which these are summed out."
            )
        self.names = model_target(bound, "latent").names
        bounded = {n: bound.structure.sites[n].mass for n in self.names}
        bounded = {n: words for n, words in bounded.items() if not words.startswith("real")}
        if bounded:
            raise AlgorithmError(
                f"EM(ExactGaussian()): latents of {bound.model.name!r} have the support {bounded}, "
                "expected the real line, as in a linear-Gaussian model: Normal latents, which "
                "enter the mean of Normal data linearly; use chains, EM(Langevin(...))."
            )
        self.shapes = {n: bound.structure.sites[n].event_shape for n in self.names}
        self.size = sum(math.prod(s) for s in self.shapes.values())
        self.run = bound.backend.compile(self._compiled(bound), num_calls=bound.num_steps)

    def __call__(
        self, bound: Bound, state: Mapping, batch: Mapping, key: Any
    ) -> tuple[Expected, dict, dict]:
        """(points with their weights, no state, metrics)."""
        expected, found = self.run(all_params(state), batch)
        return expected, {}, found

    def check(self, bound: Bound, params: Mapping, batch: Mapping) -> None:
        """Refuses a log density that is not quadratic in the latents."""
        run = bound.backend.compile(lambda p, x: self._quadratic(bound, p, x)[2], num_calls=1)
        off = float(run(params, batch))
        if off > FAR:
            raise AlgorithmError(
                f"EM(ExactGaussian()): the log density of {bound.model.name!r} is not quadratic in "
                f"the latents {list(self.names)} (its gradient is off by {off:.0%}), expected a "
                "linear-Gaussian model: Normal latents, which enter the mean of Normal data "
                "linearly; use chains, EM(Langevin(...))."
            )

    def posterior(self, bound: Bound, params: Mapping, batch: Mapping) -> tuple[Expected, dict]:
        """Points with weights, and metrics per datum."""
        ops, n, d = bound.backend.ops, size_of(batch), self.size
        start, precision, off = self._quadratic(bound, params, batch)
        root = ops.cholesky(precision)
        half = ops.solve_triangular(root, start[..., None])
        upper = root.swapaxes(-1, -2)
        mean = ops.solve_triangular(upper, half, lower=False)[..., 0]  # [n, d]
        eye = ops.broadcast_to(ops.eye_like(d, mean), (n, d, d))
        axes = ops.transpose(ops.solve_triangular(upper, eye, lower=False), (2, 0, 1))
        points = ops.concatenate([mean + d**0.5 * axes, mean - d**0.5 * axes], axis=0)
        latents = self._by_site(bound, points)
        weights = ops.full_like(points[..., 0], 0.5 / d)
        half_log_det = ops.sum(ops.log(ops.diagonal(root)), axis=-1)
        joint = mean_log_prob(bound, bound.trace(params, batch, self._by_site(bound, mean)))
        found = joint + 0.5 * d * math.log(2.0 * math.pi) - ops.mean(half_log_det)
        found = ops.where(off > FAR, float("nan"), found)  # never the number of another model
        entropy = 0.5 * d * (1.0 + math.log(2.0 * math.pi)) - ops.mean(half_log_det)
        return Expected(latents, weights), {
            "log_likelihood": found, "entropy": entropy, "log_joint": found - entropy,
        }  # fmt: skip

    def _quadratic(self, bound: Bound, params: Mapping, batch: Mapping) -> tuple:
        """(g(0) [n, d], P [n, d, d], by how much of itself the gradient elsewhere is off)."""
        b, ops, n, d = bound.backend, bound.backend.ops, size_of(batch), self.size

        def joint(z: Array) -> Array:
            sites = bound.trace(params, batch, self._by_site(bound, z))
            local = [s.log_prob for s in sites.values() if s.log_prob is not None and s.is_local]
            return ops.sum(sum(local))

        there = np.random.default_rng(0).normal(size=(1, d))
        places = b.asarray(np.concatenate([np.zeros((1, d)), np.eye(d), there]))
        slopes = b.vmap(lambda e: b.grad(joint)(ops.broadcast_to(e, (n, d))))(places)
        precision = ops.transpose(slopes[:1] - slopes[1:-1], (1, 2, 0))  # [n, d, d]
        expected = slopes[0] - ops.einsum("nij,j->ni", precision, places[-1])
        # Of each number of each datum: beside the change that P makes, rounding aside.
        change = ops.einsum("nij,j->ni", ops.abs(precision), ops.abs(places[-1]))
        rounding = 1e-4 * ops.max(ops.abs(slopes), axis=0)
        off = ops.abs(slopes[-1] - expected) / (change + rounding + 1e-30)
        return slopes[0], precision, ops.max(off)

    def _by_site(self, bound: Bound, z: Array) -> dict[str, Array]:
        """[..., d] as values by site."""
        out, start = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            part = z[..., start : start + size]
            out[name] = bound.backend.ops.reshape(part, (*z.shape[:-1], *shape))
            start += size
        return out

    def note(self) -> str:
        return f"the exact posterior of {', '.join(map(repr, self.names))}, Gaussian given a datum"
