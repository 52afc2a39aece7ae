"""p(x, z) = p(z) p_theta(x | z): a latent variable, a decoder, a likelihood, and no guide."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import probgen as pg
from probgen import ops
from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError
from probgen.language.declared import declaration, require
from probgen.language.dist import Deferred
from probgen.language.kinds import AnyNet, Width
from probgen.language.model import Distribution, Model, Sketch
from probgen.language.supports import finite_values
from probgen.models.diffusion import check_range
from probgen.models.likelihoods import Implicit, as_likelihood
from probgen.models.regression import regression

Array = Any


@declaration
class Generator(Model):
    """z ~ p(z), x ~ p_theta(x | z), one z per datum.

    Args:
        latent: the prior of z: a distribution, or another model (or `Fitted`) whose "x" becomes z,
            so that hierarchies are made by composition.
        decoder: a net from z to one datum; its `out` is the shape of a datum. A likelihood that
            needs k numbers per value gets them: the decoder's last axis is made k times as long.
        likelihood: `dist.Bernoulli`, `dist.Normal`, ... or one of `probgen.models.likelihoods`.
        data_shape: shape of a datum, for nets of your own that have no `out`.
        data_range: smallest and largest value of the data, where they have any; data outside it are
            refused.

    Sites: "z" (latent), "x" (data). Nets: "decoder", and "likelihood" for a learned scale.

    With an affine decoder, `nets.MLP((), out=D, in_ndim=1)`, and `likelihoods.Normal` of one scale
    it is probabilistic PCA, and EM knows its M-step in closed form (`models/regression.py`).
    """

    latent: Distribution | Model | Fitted
    decoder: AnyNet
    likelihood: Any
    data_shape: tuple[Width, ...] | None = dataclasses.field(default=None, kw_only=True)
    data_range: tuple[float, float] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        low, high = self.data_range or (0.0, 1.0)
        require(low < high, self, "a smaller and a larger number", "data_range")
        object.__setattr__(self, "likelihood", as_likelihood(self.likelihood))
        self.event_shape()

    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        out = self.data_shape if self.data_shape is not None else getattr(self.decoder, "out", None)
        if out is None:
            raise DeclarationError(
                f"{self.name}: the decoder has no `out`, expected the shape of a datum; give "
                "data_shape=(...)."
            )
        return (out,) if isinstance(out, int) else tuple(out)

    def prior(self) -> Model | None:
        """The prior as a model when it is one."""
        return (
            self.latent.model
            if isinstance(self.latent, Fitted)
            else (self.latent if isinstance(self.latent, Model) else None)
        )

    def with_latent(self, latent: Any) -> Generator:
        """The same generator with another prior of z."""
        return dataclasses.replace(self, latent=latent)

    def fitted_params(self) -> dict:
        inner = {}
        prior = self.prior()
        if prior is not None:
            inner = prior.fitted_params()
        if isinstance(self.latent, Fitted):
            inner = {**inner, **self.latent.params}
        return {f"prior/{k}": v for k, v in inner.items()}

    def frozen(self) -> frozenset[str]:
        prior = self.prior()
        names = prior.frozen() if prior is not None else frozenset()
        if isinstance(self.latent, Fitted):
            names = names | set(self.latent.params)
        return frozenset(f"prior/{n}" for n in names)

    def check_rows(self, rows: Any) -> None:
        prior = self.prior()
        if prior is not None:
            prior.check_rows({k: rows[k] for k in rows if k != "x"})
        check_range(self, rows)

    @property
    def is_normalized(self) -> bool:  # type: ignore[override]
        prior = self.prior()
        return prior is None or prior.is_normalized

    @property
    def program(self) -> Any:
        prior = self.prior()

        def program(**inputs: Any) -> None:
            with pg.data_plate():
                z = self.draw_latent(**inputs)
                output = self.decode(z)
                pg.sample("x", self.likelihood(output, len(self.event_shape())))

        # A prior's inputs (a diffusion's condition) are this model's.
        own = inspect.Signature() if prior is None else inspect.signature(prior.program)
        program.__signature__ = own  # type: ignore[attr-defined]
        return program

    def draw_latent(self, **inputs: Any) -> Array:
        """Declares z, from its distribution or from the prior's own program."""
        prior = self.prior()
        if prior is None:
            return pg.sample("z", self.latent)
        return pg.submodel("prior", prior, rename={"x": "z"}, **inputs)["x"]

    def draw_mean(self, **inputs: Any) -> Array:
        """Declares z and x = E[x | z]: x is no random variable of its own, and has no density.

        Data may still be given for x, as for a factor that reads it.
        """
        mean = self.likelihood.mean(self.decode(self.draw_latent(**inputs)))
        return pg.sample("x", Implicit()(mean, len(self.event_shape())))

    def decode(self, z: Array) -> Array:
        """The decoder's output for z, with the likelihood's numbers per value on a last axis."""
        k, shape = self.likelihood.parameters_per_value, self.event_shape()
        if k == 1 or not hasattr(self.decoder, "out"):
            return pg.net("decoder", self.decoder)(z)
        base = shape or (1,)
        wide = dataclasses.replace(self.decoder, out=(*base[:-1], base[-1] * k))
        output = pg.net("decoder", wide)(z)
        return ops.reshape(output, (*output.shape[: output.ndim - len(base)], *shape, k))

    def sketch(self) -> Sketch:
        prior = self.prior()
        inner = Sketch(self) if prior is None else prior.sketch()
        if not inner.left_out:
            return Sketch(self)
        return inner.within(self._with_prior(inner.model), "prior/")

    def by_steps(self) -> Model | None:
        prior = self.prior()
        inner = None if prior is None else prior.by_steps()
        return None if inner is None else self._with_prior(inner)

    def _with_prior(self, prior: Model) -> Model:
        """The same with another program for the prior, whose parameters stay."""
        latent: Any = prior
        if isinstance(self.latent, Fitted):
            latent = dataclasses.replace(self.latent, model=prior)
        return dataclasses.replace(self, latent=latent)

    def ancestral(self) -> Any:
        prior = self.prior()
        return self if prior is not None and prior.ancestral() is not None else None

    def generate(
        self, bound: Any, params: Any, key: Any, num_samples: int, batch: Any
    ) -> dict[str, Array]:
        """Draws z by its prior's own way, where it has one (`ancestral`), then x given z."""
        keys = bound.backend.split(key, 2)
        part = {k.removeprefix("prior/"): v for k, v in params.items() if k.startswith("prior/")}
        prior: Any = self.prior()
        z = prior.ancestral().generate(bound, part, keys[0], num_samples, batch)["x"]

        def program() -> None:
            with pg.data_plate():
                pg.sample("x", self.likelihood(self.decode(z), len(self.event_shape())))

        sites = bound.backend.trace(program, params, key=keys[1], batch_size=num_samples)
        return {"z": z, "x": sites["x"].value}

    def mean(self, bound: Any, params: Any, z: Array) -> Array:
        """E[x | z] for latents z [*batch, d], [*batch, *event]."""

        def program() -> None:
            pg.deterministic("mean", self.likelihood.mean(self.decode(z)))

        return bound.backend.trace(program, params)["mean"].value

    def maximiser(self) -> Callable | None:
        """The regression of x on a continuous z where that is linear; None of a prior with nets."""
        if self.prior() is not None or finite_values(self.latent) is not None:
            return None
        return regression(self.decoder, self.likelihood)

    def formula(self) -> str:
        p_z = _latex_prior(self.latent) if isinstance(self.latent, Deferred) else r"p(z)"
        return rf"p_\theta(x, z) = {p_z}\ {self.likelihood_formula()}"

    def likelihood_formula(self) -> str:
        return self.likelihood.formula()


def _latex_prior(latent: Deferred) -> str:
    arguments = dict(latent.arguments)
    if latent.name == "Normal" and arguments.get("loc") == 0 and arguments.get("scale") == 1:
        return r"\mathcal{N}(z;\ 0, I)"
    return rf"\mathrm{{{latent.name}}}(z)"


def size_of(latent: Deferred) -> int | None:
    """Number of units of a latent with one event axis, when the declaration tells it."""
    shape: tuple[int, ...] = ()
    for method, args in latent.calls:
        if method == "expand":
            shape = tuple(args[0])
    return math.prod(shape) if shape else None
