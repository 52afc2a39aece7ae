"""Deferred distributions: a name, its arguments and the method calls made on it.

    dist.Normal(0, 1).expand([16]).to_event(1)

records what Pyro's or NumPyro's class of that name will be given when a site runs; nothing is
computed here. Argument names and defaults are one table, `SIGNATURES` (NumPyro's spelling), so a
misspelt argument is refused where it is written. What one library spells differently is mapped by
its adapter in `probgen/backends/`; what one of them lacks is an error there that says so.

Densities are ours (`probgen.densities`), edges of supports included, where the library's would not
be scipy's. What keeps the library's own: ContinuousBernoulli, LKJ and LKJCholesky (edges have no
mass), LowRankMultivariateNormal (Pyro factorises it where it is built, and refuses there what is
not positive definite) and Stable (Pyro has draws of it and no density).

Three are written by their user, in `ops`, and run on both backends:

    dist.Transformed(base, forward, inverse_and_log_det)    y = forward(x), x ~ base
    dist.Density(log_prob, draw=None)                       a density by its formula
    dist.ImproperUniform(support)                           flat, and no density: 1 everywhere

Their functions may call `pg.net`. `inverse_and_log_det(y)` gives x and log |det dx/dy| [*batch], so
that log p(y) = log p_base(x) + log_det; `forward` may also be one object with both methods, or
`dist.BijectTo("ordered_vector")`. `draw(noise)` makes a value of standard normal noise [*batch,
*noise_shape] (the event's shape by default); without it there are no draws. `support` is one of the
words of `probgen.language.constraints`. A Density is taken to integrate to one unless
is_normalized=False; an ImproperUniform never does. With `start=` it has draws, which follow no law
of its own: they are where the chains of an energy begin that has no other base.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from probgen.errors import DeclarationError, UnknownDistribution, UnknownName
from probgen.language.constraints import BijectTo, SupportWord
from probgen.language.declared import argument
from probgen.language.kinds import Axes, Shape, Size
from probgen.language.masked import refuse_masked
from probgen.language.wording import did_you_mean

# name -> arguments in order; "a=1.0" has a default, "a?" may be left out.
SIGNATURES: dict[str, str] = {
    "AsymmetricLaplace": "loc=0.0 scale=1.0 asymmetry=1.0",
    "Bernoulli": "probs? logits?",
    "Beta": "concentration1 concentration0",
    "BetaBinomial": "concentration1 concentration0 total_count=1",
    "Binomial": "total_count=1 probs? logits?",
    "Categorical": "probs? logits?",
    "Cauchy": "loc=0.0 scale=1.0",
    "Chi2": "df",
    "ContinuousBernoulli": "probs? logits?",
    "Delta": "v=0.0 log_density=0.0 event_dim=0",
    "Dirichlet": "concentration",
    "DirichletMultinomial": "concentration total_count=1",
    "DiscretizedLogistic": "loc scale low=0.0 high=1.0 num_levels=256",
    "Exponential": "rate=1.0",
    "FoldedDistribution": "base_dist",
    "Gamma": "concentration rate=1.0",
    "GammaPoisson": "concentration rate=1.0",
    "Geometric": "probs? logits?",
    "Gumbel": "loc=0.0 scale=1.0",
    "HalfCauchy": "scale=1.0",
    "HalfNormal": "scale=1.0",
    "InverseGamma": "concentration rate=1.0",
    "Kumaraswamy": "concentration1 concentration0",
    "LKJ": "dim concentration=1.0",
    "LKJCholesky": "dim concentration=1.0",
    "Laplace": "loc=0.0 scale=1.0",
    "LogNormal": "loc=0.0 scale=1.0",
    "Logistic": "loc=0.0 scale=1.0",
    "LowRankMultivariateNormal": "loc cov_factor cov_diag",
    "MixtureSameFamily": "mixing_distribution component_distribution",
    "Multinomial": "total_count=1 probs? logits?",
    "MultivariateNormal": "loc covariance_matrix? precision_matrix? scale_tril?",
    "MultivariateStudentT": "df loc scale_tril",
    "NegativeBinomial": "total_count probs? logits?",
    "Normal": "loc=0.0 scale=1.0",
    "OrderedLogistic": "predictor cutpoints",
    "Pareto": "scale alpha",
    "Poisson": "rate",
    "RelaxedBernoulli": "temperature probs? logits?",
    "SoftLaplace": "loc=0.0 scale=1.0",
    "StudentT": "df loc=0.0 scale=1.0",
    "Uniform": "low=0.0 high=1.0",
    "Unit": "log_factor",
    "VonMises": "loc concentration",
    "Weibull": "scale concentration",
    "ZeroInflatedPoisson": "rate gate",
    # written by their user; see `probgen.backends.written`
    "Density": "log_prob draw? event_shape? support? noise_shape? is_normalized?",
    "ImproperUniform": "support event_shape? start?",
    "Transformed": "base forward inverse_and_log_det? event_shape? support?",
    # one backend only: declared here so that the other can say so
    "AffineBeta": "concentration1 concentration0 loc scale",
    "FisherSnedecor": "df1 df2",
    "OneHotCategorical": "probs? logits?",
    "Stable": "stability skew scale=1.0 loc=0.0",
    "BetaProportion": "mean concentration",
    "DiscreteUniform": "low=0 high=1",
    "Gompertz": "concentration rate=1.0",
    "TruncatedNormal": "loc=0.0 scale=1.0 low? high?",
}


def signature(name: str) -> dict[str, Any]:
    """Argument names in order, each with its default, `...` (needed) or None (may lack)."""
    out: dict[str, Any] = {}
    for word in SIGNATURES[name].split():
        if word.endswith("?"):
            out[word[:-1]] = None
        elif "=" in word:
            arg, default = word.split("=")
            out[arg] = float(default) if "." in default else int(default)
        else:
            out[word] = ...
    return out


@dataclasses.dataclass(frozen=True)
class Deferred:
    """One distribution, not yet built: name, arguments by name, method calls in order.

    Methods of Pyro's and NumPyro's distributions may be called on it and are recorded:
    `expand(batch_shape)`, `to_event(n)`, `mask(m)`. `build` is for backends.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    calls: tuple[tuple[str, tuple], ...] = ()

    def expand(self, batch_shape: Any) -> Deferred:
        """The same distribution, repeated independently over `batch_shape`."""
        taken = argument(f"dist.{self.name}.expand", Size | Sequence[Size], batch_shape=batch_shape)
        return self._call("expand", (taken,) if isinstance(taken, int) else taken)

    def to_event(self, reinterpreted_batch_ndims: int) -> Deferred:
        """Takes the last `n` batch axes into the event: its log-probability sums over them."""
        where = f"dist.{self.name}.to_event"
        count = argument(where, Axes, reinterpreted_batch_ndims=reinterpreted_batch_ndims)
        return self._call("to_event", count)

    def mask(self, mask: Any) -> Deferred:
        """Where `mask` is false the log-probability counts zero."""
        return self._call("mask", mask)

    def leaves(self) -> Iterator[Any]:
        """Its arguments' values, those of distributions among them included."""
        for _, value in self.arguments:
            yield from value.leaves() if isinstance(value, Deferred) else (value,)

    @property
    def is_normalized(self) -> bool:
        """Whether its density integrates to one, by its author's word."""
        given = dict(self.arguments)
        if self.name == "ImproperUniform" or given.get("is_normalized") is False:
            return False
        return all(v.is_normalized for v in given.values() if isinstance(v, Deferred))

    @property
    def has_draw(self) -> bool:
        """Whether its law can be drawn from: a density by its formula alone cannot, and where an
        ImproperUniform starts is no law of its own."""
        given = dict(self.arguments)
        if self.name == "ImproperUniform" or (self.name == "Density" and "draw" not in given):
            return False
        return all(v.has_draw for v in given.values() if isinstance(v, Deferred))

    def _call(self, method: str, *args: Any) -> Deferred:
        return dataclasses.replace(self, calls=(*self.calls, (method, args)))

    def __repr__(self) -> str:
        args = ", ".join(f"{k}={_shown(v)}" for k, v in self.arguments)
        calls = "".join(f".{m}({', '.join(map(repr, a))})" for m, a in self.calls)
        return f"dist.{self.name}({args}){calls}"


def _shown(value: Any) -> str:
    """An argument in a declaration's text: a framework's array by its shape, not its numbers, a
    function by its name."""
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    shape = getattr(value, "shape", ())
    if math.prod(shape) > 1 and not type(value).__module__.startswith("numpy"):
        return f"<array {tuple(shape)}>"
    return repr(value)


@dataclasses.dataclass(frozen=True)
class Family:
    """A distribution's name that waits for its arguments; `dist.Normal` is one."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Deferred:
        names = signature(self.name)
        if len(args) > len(names):
            raise DeclarationError(
                f"dist.{self.name}: got {len(args)} positional arguments, expected at most "
                f"{len(names)} ({', '.join(names)})."
            )
        given = dict(zip(names, args, strict=False))
        for key, value in kwargs.items():
            if key not in names:
                raise UnknownName(
                    f"dist.{self.name}: got an argument {key!r}, expected one of "
                    f"{', '.join(names)}{did_you_mean(key, names)}."
                )
            if key in given:
                raise DeclarationError(f"dist.{self.name}: argument {key!r} is given twice.")
            given[key] = value
        missing = [k for k, default in names.items() if default is ... and k not in given]
        if missing:
            raise DeclarationError(
                f"dist.{self.name}: got no {' and no '.join(missing)}; expected "
                f"dist.{self.name}({', '.join(names)})."
            )
        full = {k: given.get(k, default) for k, default in names.items()}
        if self.name in _WRITTEN:
            full = _checked(self.name, full)
        for key, value in full.items():
            refuse_masked(value, f"dist.{self.name}, {key}")
        return Deferred(self.name, tuple((k, v) for k, v in full.items() if v is not None))

    def __repr__(self) -> str:
        return f"dist.{self.name}"


_WRITTEN = ("Density", "ImproperUniform", "Transformed")
_KINDS: dict[str, Any] = {
    "base": Deferred, "start": Deferred, "log_prob": Callable, "draw": Callable,
    "inverse_and_log_det": Callable, "event_shape": Shape, "noise_shape": Shape,
    "support": SupportWord, "is_normalized": bool,
}  # fmt: skip


def _checked(name: str, full: dict[str, Any]) -> dict[str, Any]:
    """Arguments of what its user writes, held against their kinds."""
    where = f"dist.{name}"
    for key, value in full.items():
        if value is not None and key in _KINDS:
            shape = (value,) if key.endswith("_shape") and isinstance(value, int) else value
            full[key] = argument(where, _KINDS[key], **{key: shape})
    if name == "Transformed":
        forward, inverse = full["forward"], full["inverse_and_log_det"]
        is_pair = hasattr(forward, "forward") and hasattr(forward, "inverse_and_log_det")
        is_whole = isinstance(forward, BijectTo) or is_pair
        if is_whole != (inverse is None) or not (is_whole or callable(forward)):
            raise DeclarationError(
                f"{where}: got forward={_shown(forward)} and inverse_and_log_det="
                f"{_shown(inverse)}, expected two functions, or in place of both an object with "
                "the methods `forward` and `inverse_and_log_det`, or dist.BijectTo(support)."
            )
    return full


def __getattr__(name: str) -> Family:
    if name.startswith("_"):
        raise AttributeError(name)
    if name not in SIGNATURES:
        raise UnknownDistribution(
            f"probgen.dist has no distribution {name!r}{did_you_mean(name, SIGNATURES)}; "
            "known are: " + ", ".join(sorted(SIGNATURES))
        )
    return Family(name)


def __dir__() -> list[str]:
    return sorted([*SIGNATURES, "BijectTo", "Deferred", "Family", "SIGNATURES", "signature"])
