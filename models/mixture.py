"""A mixture of Gaussians: which component, then a vector of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import DataError
from probgen.language.declared import declaration
from probgen.language.kinds import Many, NonNegative, Width
from probgen.language.model import Model

Array = Any


@declaration
class GaussianMixture(Model):
    """z ~ Categorical(w), x ~ N(mu_z, Sigma_z): one of K components for each datum.

    Args:
        num_components: K.
        num_features: length of a datum.
        covariance: "full", or "diagonal".
        min_variance: added to the variances that the closed M-step finds, since the likelihood is
            infinite where a component sits on one datum (scikit-learn's `reg_covar`).

    Sites: "z" (component, summed out by every algorithm), "x" (data, [n, num_features]). Nets:
    "weights" (log odds), "means", "scales" (a lower triangular matrix whose diagonal is in logs, or
    logs of standard deviations).

    The likelihood has many maxima: `start(x, seed)` gives parameters near the data to begin with.

        mixture = GaussianMixture(3, 4)
        fitted = pg.fit(
            mixture, x, EM(Enumerate()), init=mixture.start(x, seed=0), batch_size=None,
            num_steps=50, seed=0,
        )
        fitted.encode(x)["z"]            # [n, K], the probability of each component
    """

    num_components: Many
    num_features: Width
    covariance: Literal["full", "diagonal"] = dataclasses.field(default="full", kw_only=True)
    min_variance: NonNegative = dataclasses.field(default=1e-6, kw_only=True)

    @property
    def program(self) -> Any:
        k, d = self.num_components, self.num_features

        def program() -> None:
            logits = pg.net("weights", nets.Parameter((k,)))()
            means = pg.net("means", nets.Embedding(k, d))
            scales = pg.net("scales", nets.Parameter(self._scales()))()
            with pg.data_plate():
                z = pg.sample("z", dist.Categorical(logits=logits))
                pg.sample("x", self._component(means(z), ops.take(scales, z)))

        return program

    def _scales(self) -> tuple[int, ...]:
        k, d = self.num_components, self.num_features
        return (k, d, d) if self.covariance == "full" else (k, d)

    def _component(self, mean: Array, scale: Array) -> Any:
        if self.covariance == "diagonal":
            return dist.Normal(mean, ops.exp(scale)).to_event(1)
        eye = ops.eye_like(self.num_features, scale)
        diagonal = ops.exp(ops.diagonal(scale))[..., None] * eye
        return dist.MultivariateNormal(mean, scale_tril=ops.tril(scale, -1) + diagonal)

    def maximiser(self) -> Callable:
        """Weights, means and covariances of the data, each datum shared out among components.

        Source: Dempster, Laird & Rubin 1977, section 4.3.
        """
        k, d = self.num_components, self.num_features

        def maximise(params: Mapping, batch: Mapping, latents: Mapping, weights: Array) -> dict:
            x, eye = batch["x"], ops.eye_like(d, batch["x"])
            share = ops.einsum("cn,cnk->nk", weights, ops.one_hot(latents["z"], k, weights))
            size = ops.sum(share, axis=0) + 1e-30  # of a component that no datum has left
            means = ops.einsum("nk,nd->kd", share, x) / size[:, None]
            off = x[:, None] - means  # [n, k, d]
            if self.covariance == "diagonal":
                variance = ops.einsum("nk,nkd->kd", share, off * off) / size[:, None]
                scales = 0.5 * ops.log(variance + self.min_variance)
            else:
                cov = ops.einsum("nki,nkj->kij", share[..., None] * off, off)
                root = ops.cholesky(cov / size[:, None, None] + self.min_variance * eye)
                scales = ops.tril(root, -1) + ops.log(ops.diagonal(root))[..., None] * eye
            logits = ops.log(size / ops.sum(size))
            return {
                "weights": {"value": logits}, "means": {"table": means}, "scales": {"value": scales}
            }  # fmt: skip

        return maximise

    def start(self, x: Any, seed: int) -> dict:
        """Parameters to begin with, for `init=`: means at data far from each other (k-means++),
        the data's covariance for each component, equal weights.

        Raises:
            DataError: x is not [n, num_features], or has fewer rows than there are components.

        Source: Arthur & Vassilvitskii 2007, "k-means++".
        """
        x, (k, d) = np.asarray(x, np.float64), (self.num_components, self.num_features)
        if x.ndim != 2 or x.shape[1] != d or len(x) < k:
            raise DataError(
                f"GaussianMixture.start: got data of shape {x.shape}, expected [n, {d}] with at "
                f"least {k} rows, one a component."
            )
        rng = np.random.default_rng(seed)
        means = [x[rng.integers(len(x))]]
        for _ in range(k - 1):
            far = np.min([((x - m) ** 2).sum(1) for m in means], axis=0)
            p = far / far.sum() if far.sum() > 0 else None
            means.append(x[rng.choice(len(x), p=p)])
        return self.params_of(
            np.full(k, 1.0 / k), np.array(means), [np.cov(x.T, bias=True).reshape(d, d)] * k
        )

    def params_of(self, weights: Any, means: Any, covariances: Any) -> dict:
        """Parameters for `init=` of weights [K], means [K, d] and covariances [K, d, d]."""
        eye = np.eye(self.num_features)
        cov = np.asarray(covariances, np.float64) + self.min_variance * eye
        if self.covariance == "diagonal":
            scales = 0.5 * np.log(np.einsum("kii->ki", cov))
        else:
            root = np.linalg.cholesky(cov)
            scales = np.tril(root, -1) + np.log(np.einsum("kii->ki", root))[..., None] * eye
        found = {
            "weights": {"value": np.log(weights)}, "means": {"table": means},
            "scales": {"value": scales},
        }  # fmt: skip
        return {n: {k: np.float32(v) for k, v in net.items()} for n, net in found.items()}

    def formula(self) -> str:
        return r"p_\theta(x) = \sum_k w_k\ \mathcal{N}(x;\ \mu_k, \Sigma_k)"
