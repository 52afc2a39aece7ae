"""The variational auto-encoder: a generator with an encoder as its guide.

    p(x, z) = p(z) p_theta(x | z)          q_phi(z | x) = N(z; m_phi(x), S_phi(x))

S is a diagonal or a full covariance. A prior that is itself a VAE makes a hierarchy: the guide then
goes on from z with the prior's own, q(z | x) q(prior/z | z).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import probgen as pg
from probgen import dist, ops
from probgen.errors import DeclarationError, UnknownName
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet
from probgen.models.generator import Generator, size_of

Array = Any


@declaration
class VAE(Generator):
    """p(x, z) = p(z) p_theta(x | z) with the guide q_phi(z | x), a Gaussian.

    Args:
        latent, decoder, likelihood, data_shape, data_range: as in `Generator`.
        encoder: a net from a datum to the guide's parameters. For `guide_kind="diagonal"` its
            output is a dict with heads "loc" and "log_scale" (or "log_variance", as much published
            code has it), each of the latent's shape. For "full" it may be declared the same way: a
            net with an `out` is given the d + d (d + 1) / 2 numbers that a full covariance needs;
            one without must give them.
        guide_kind: "diagonal" or "full" covariance (by its Cholesky factor, softplus diagonal).

    Sites: "z", "x". Nets: "decoder", "encoder" (and "likelihood" for a learned scale). Those of a
    prior that is a model are called "prior/...".

    Source: Kingma & Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082.
    """

    encoder: AnyNet | None = None
    guide_kind: Literal["diagonal", "full"] = dataclasses.field(default="diagonal", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.encoder is not None, self,
            'a net such as nets.MLP(hidden=(256,), out=16, heads=("loc", "log_scale")); for a '
            "model without one declare a Generator",
            "encoder",
        )  # fmt: skip

    @property
    def guide(self) -> Any:  # type: ignore[override]
        def guide(x: Array) -> None:
            with pg.data_plate():
                z = pg.sample("z", self.posterior(x))
                prior = self.prior()
                if prior is not None and prior.guide is not None:
                    pg.subguide("prior", prior, rename={"x": "z"}, x=z)

        return guide

    def posterior(self, x: Array) -> dist.Deferred:
        """q(z | x) as a distribution, inside a run."""
        if self.guide_kind == "full":
            return self._full(x)
        h = pg.net("encoder", self.encoder)(self.likelihood.encoder_input(x))
        given = set(h) if isinstance(h, dict) else set()
        if "loc" not in given or len(given & {"log_scale", "log_variance"}) != 1:
            got = sorted(h) if isinstance(h, dict) else type(h).__name__
            raise UnknownName(
                f"VAE: the encoder gives {got}, expected the heads 'loc' and 'log_scale' (or "
                '\'log_variance\'); declare it with heads=("loc", "log_scale").'
            )
        log_scale = h["log_scale"] if "log_scale" in h else 0.5 * h["log_variance"]
        event_ndim = h["loc"].ndim - x.ndim + len(self.event_shape())
        return dist.Normal(h["loc"], ops.exp(log_scale)).to_event(event_ndim)

    def _full(self, x: Array) -> dist.Deferred:
        d = self.latent_size()
        count = d + d * (d + 1) // 2
        encoder: Any = self.encoder
        if hasattr(encoder, "out"):
            encoder = dataclasses.replace(encoder, out=count, heads=None)
        h = pg.net("encoder", encoder)(self.likelihood.encoder_input(x))
        loc, raw = h[..., :d], h[..., d:]
        diagonal = ops.softplus(raw[..., :d]) + 1e-4
        return dist.MultivariateNormal(loc, scale_tril=_lower(diagonal, raw[..., d:], d))

    def latent_size(self) -> int:
        """Number of latent units.

        Raises:
            DeclarationError: the prior's declaration does not tell it.
        """
        size = size_of(self.latent) if isinstance(self.latent, dist.Deferred) else None
        if size is None:
            out = getattr(self.encoder, "out", None)
            if not isinstance(out, int):
                raise DeclarationError(
                    "VAE: the number of latent units is not told by the prior, expected a "
                    "distribution with .expand([d]), or an encoder with out=d."
                )
            size = out
        return size

    def formula(self) -> str:
        guide = (
            r"\mathrm{diag}\,s_\phi(x)^2"
            if self.guide_kind == "diagonal"
            else (r"L_\phi(x) L_\phi(x)^\top")
        )
        return (
            super().formula()
            + rf",\qquad q_\phi(z \mid x) = \mathcal{{N}}(z;\ m_\phi(x),\ {guide})"
        )


def _lower(diagonal: Array, below: Array, d: int) -> Array:
    """[*batch, d, d] lower triangle from its diagonal and the entries below it, row by row."""
    rows, start = [], 0
    zero = diagonal[..., :1] * 0.0
    for i in range(d):
        parts = [below[..., start : start + i], diagonal[..., i : i + 1]]
        start += i
        if i < d - 1:
            parts.append(ops.concatenate([zero] * (d - 1 - i), axis=-1))
        rows.append(ops.concatenate([p for p in parts if p.shape[-1]], axis=-1))
    return ops.stack(rows, axis=-2)
