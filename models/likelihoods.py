"""Likelihoods p(x | z): what a decoder's output means.

A likelihood takes the decoder's output for a batch and gives the distribution of one datum. Its
`parameters_per_value` says how many numbers per pixel the decoder must give: they lie on a last
axis of their own, [*batch, *event, k], unless k is 1. `dist.Bernoulli` and the like stand for the
likelihood with its defaults. All log-probabilities are nats, constants included.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import DeclarationError
from probgen.language.declared import declaration
from probgen.language.dist import Deferred, Family
from probgen.language.kinds import NonNegative, Positive, between

Array = Any


@declaration
class Likelihood:
    """Base of likelihoods."""

    @property
    def parameters_per_value(self) -> int:
        """How many numbers the decoder gives for each value of a datum."""
        return 1

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        """The distribution of a datum, given the decoder's output [*batch, *event (, k)]."""
        raise NotImplementedError  # abstract: every likelihood below defines it

    def mean(self, output: Array) -> Array:
        """What to show of a datum: its expectation given the output, [*batch, *event]."""
        raise NotImplementedError  # abstract: every likelihood below defines it

    def encoder_input(self, x: Array) -> Array:
        """A datum as an encoder should see it, of the order of one."""
        return x

    def formula(self) -> str:
        """The distribution in LaTeX, `f` being the decoder."""
        raise NotImplementedError  # abstract: every likelihood below defines it


@declaration
class Bernoulli(Likelihood):
    """x in {0, 1}: the output is the log odds of a one."""

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        return dist.Bernoulli(logits=output).to_event(event_ndim)

    def mean(self, output: Array) -> Array:
        return ops.sigmoid(output)

    def formula(self) -> str:
        return r"\mathrm{Bernoulli}(x;\ \sigma(f_\theta(z)))"


@declaration
class Normal(Likelihood):
    """x real: the output is the mean.

    Args:
        scale: a number: fixed; "learned": one scale for all values, a parameter; "predicted": one
            for each value, by the decoder, whose output then has a last axis (mean, raw scale).
        min_scale: bounds a learned or predicted scale from below, min_scale + softplus(raw), since
            the likelihood of a continuous datum grows without bound as its scale goes to zero.
    """

    scale: Positive | Literal["learned", "predicted"] = "learned"
    min_scale: NonNegative = 1e-3

    @property
    def parameters_per_value(self) -> int:
        return 2 if self.scale == "predicted" else 1

    def _scale(self, raw: Array) -> Array:
        return self.min_scale + ops.softplus(raw)

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        if self.scale == "predicted":
            loc, scale = output[..., 0], self._scale(output[..., 1])
        elif self.scale == "learned":
            loc, scale = output, self._scale(pg.net("likelihood", nets.Parameter(()))())
        else:
            loc, scale = output, self.scale
        return dist.Normal(loc, scale).to_event(event_ndim)

    def mean(self, output: Array) -> Array:
        return output[..., 0] if self.scale == "predicted" else output

    def formula(self) -> str:
        if self.scale == "predicted":
            return r"\mathcal{N}(x;\ f_\theta(z),\ \mathrm{diag}\,\sigma_\theta(z)^2)"
        scale = r"\sigma" if self.scale == "learned" else f"{self.scale:g}"
        return rf"\mathcal{{N}}(x;\ f_\theta(z),\ {scale}^2 I)"


@declaration
class Implicit(Likelihood):
    """x is the output itself: draws, as of a GAN's generator, and no density."""

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        axes = tuple(range(-event_ndim, 0))
        return dist.Density(
            lambda x: 0.0 * (ops.sum(x, axis=axes) if axes else x), lambda noise: output,
            event_shape=tuple(output.shape[output.ndim - event_ndim :]), noise_shape=(0,),
            is_normalized=False,
        )  # fmt: skip

    def mean(self, output: Array) -> Array:
        return output

    def formula(self) -> str:
        return r"\delta(x - f_\theta(z))"


@declaration
class DiscretizedLogistic(Likelihood):
    """x on `num_levels` levels in [0, 1], such as image bytes / 255; see `language.discretized`.

    The output's last axis is (raw location, raw scale): the logistic density is centred at
    sigmoid(raw location), which `mean` shows, and has scale min_scale + softplus(raw scale) / 5.
    """

    num_levels: Annotated[int, between(2, 10**6)] = 256
    min_scale: NonNegative = 1e-3

    @property
    def parameters_per_value(self) -> int:
        return 2

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        scale = self.min_scale + 0.2 * ops.softplus(output[..., 1])
        fn = dist.DiscretizedLogistic(
            self.mean(output), scale, low=0.0, high=1.0, num_levels=self.num_levels
        )
        return fn.to_event(event_ndim)

    def mean(self, output: Array) -> Array:
        return ops.sigmoid(output[..., 0])

    def formula(self) -> str:
        return rf"\mathrm{{Logistic}}_{{{self.num_levels}}}(x;\ \mu_\theta(z), s_\theta(z))"


@declaration
class Categorical(Likelihood):
    """x in {0, ..., num_classes - 1}: the output has a last axis of log odds."""

    num_classes: Annotated[int, between(2, 10**6)] = 256

    @property
    def parameters_per_value(self) -> int:
        return self.num_classes

    def encoder_input(self, x: Array) -> Array:
        return x / (self.num_classes - 1.0)

    def __call__(self, output: Array, event_ndim: int) -> Deferred:
        return dist.Categorical(logits=output).to_event(event_ndim)

    def mean(self, output: Array) -> Array:
        levels = ops.arange_like(self.num_classes, output)
        return ops.sum(ops.softmax(output, axis=-1) * levels, axis=-1)

    def formula(self) -> str:
        return rf"\mathrm{{Categorical}}_{{{self.num_classes}}}(x;\ f_\theta(z))"


_BY_FAMILY = {
    "Bernoulli": Bernoulli,
    "Normal": Normal,
    "DiscretizedLogistic": DiscretizedLogistic,
    "Categorical": Categorical,
}


def as_likelihood(given: Any) -> Likelihood:
    """A likelihood, or the default one for `dist.Bernoulli` and the like."""
    if isinstance(given, Likelihood):
        return given
    if isinstance(given, Family) and given.name in _BY_FAMILY:
        return _BY_FAMILY[given.name]()
    raise DeclarationError(
        f"likelihood: got {given!r}, expected one of probgen.models.likelihoods or "
        f"{', '.join('dist.' + n for n in _BY_FAMILY)}."
    )
