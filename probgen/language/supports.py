"""Where distributions have their mass, by family: the one table, read off declarations.

Both libraries name a family's support differently, and a computed bound is abstract in a probe on
JAX; a declaration says the same on both. Edges are not told apart from what lies inside them: they
have no mass.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

_WORDS = {
    "real": "AsymmetricLaplace Cauchy Gumbel Laplace Logistic LowRankMultivariateNormal "
    "MultivariateNormal MultivariateStudentT Normal SoftLaplace Stable StudentT",
    "positive": "Chi2 Exponential FisherSnedecor Gamma Gompertz HalfCauchy HalfNormal InverseGamma "
    "LogNormal Weibull",
    "[0, 1]": "Beta BetaProportion ContinuousBernoulli Kumaraswamy RelaxedBernoulli",
    "{0, 1}": "Bernoulli",
    "{0, 1, ...}": "GammaPoisson Geometric NegativeBinomial Poisson ZeroInflatedPoisson",
    "simplex": "Dirichlet",
    "counts": "DirichletMultinomial Multinomial",
    "one-hot": "OneHotCategorical",
    "classes": "Categorical OrderedLogistic",
    "circle": "VonMises",
    "levels": "DiscretizedLogistic",
    "correlations": "LKJ LKJCholesky",
}
SUPPORTS = {name: words for words, names in _WORDS.items() for name in names.split()}
_BOUNDS = {
    "real": (-math.inf, math.inf), "positive": (0.0, math.inf), "[0, 1]": (0.0, 1.0),
    "{0, 1}": (0.0, 1.0), "{0, 1, ...}": (0.0, math.inf), "circle": (-math.pi, math.pi),
}  # fmt: skip


class Support(NamedTuple):
    """Where a distribution has its mass.

    words: for messages; low, high: bounds of its values, NaN where they are computed; None where
    it is no interval.
    """

    words: str
    low: Any = None
    high: Any = None


def support_of(declaration: Any) -> Support | None:
    """The support of a declared distribution; None where its family does not tell it."""
    name, arguments = declaration.name, dict(getattr(declaration, "arguments", ()))
    if name in SUPPORTS:
        return Support(SUPPORTS[name], *_BOUNDS.get(SUPPORTS[name], ()))
    if name == "FoldedDistribution":
        return Support("positive", *_BOUNDS["positive"])
    if name == "MixtureSameFamily" and "component_distribution" in arguments:
        return support_of(arguments["component_distribution"])
    ends = _ends(name, arguments)
    if ends is None:
        return None
    low, high = map(_number, ends)
    shown = [f"{v:g}" if np.ndim(v) == 0 and not np.isnan(v) else "?" for v in (low, high)]
    return Support(f"[{shown[0]}, {shown[1]}]", low, high)


def _ends(name: str, arguments: dict) -> tuple[Any, Any] | None:
    """Bounds that a family's own arguments give."""
    if name in ("Uniform", "DiscreteUniform", "TruncatedNormal") and arguments:
        return arguments.get("low", -math.inf), arguments.get("high", math.inf)
    if name == "Pareto" and arguments:
        return arguments["scale"], math.inf
    if name in ("Binomial", "BetaBinomial") and arguments:
        return 0.0, arguments["total_count"]
    return None


def _number(value: Any) -> Any:
    """A bound as numpy; NaN where the program computes it."""
    is_plain = isinstance(value, int | float | np.ndarray | np.generic | list)
    return np.asarray(value, np.float64) if is_plain else np.asarray(math.nan)


def compare(inner: Support, outer: Support) -> str:
    """How `inner` lies in `outer`: "equal", "smaller", "outside", or "unknown"."""
    if inner.low is None or outer.low is None:
        return "equal" if inner.words == outer.words else "outside"
    with np.errstate(invalid="ignore"):
        try:
            beyond = (inner.low < outer.low) | (inner.high > outer.high)
            # A computed bound is finite, so it lies inside an infinite one.
            short = (inner.low > outer.low) | (np.isnan(inner.low) & np.isneginf(outer.low))
            short = short | (inner.high < outer.high)
            short = short | (np.isnan(inner.high) & np.isposinf(outer.high))
        except ValueError:  # bounds by unit, of another number of units
            return "unknown"
    if np.any(beyond):
        return "outside"
    return "smaller" if np.any(short) else "equal"
