"""Where distributions have their mass, by family: the one table, in words, as ends and as a test.

Both libraries name a family's support differently, and a computed bound is abstract in a probe on
JAX; a declaration says the same on both. Edges belong to a support where the density there may be
finite, as in scipy; two supports that differ by an edge alone are equal.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.language import ops
from probgen.language.constraints import Constraint, constraint
from probgen.language.domains import constant

Array = Any
SIMPLEX_TOLERANCE = 1e-5
INF = math.inf


class Region(NamedTuple):
    """A kind of support.

    words: for messages; None: its ends.
    low, high: ends of an interval, each a number, an argument's name, or a function of the
        arguments by name; None where it is no interval.
    has_low: the lower end belongs to it.
    is_whole: whole numbers alone.
    inside: `(x, arguments) -> [*batch]` in place of ends, true for NaN, so that it stays NaN.
    is_ours: a value is held against it; else the library's own class tells what is inside.
    """

    words: str | None
    low: Any = None
    high: Any = None
    has_low: bool = True
    is_whole: bool = False
    inside: Callable | None = None
    is_ours: bool = True


def _is_count(x: Array) -> Array:
    return ~((x < 0) | (x != ops.floor(x)))


def _simplex(x: Array, given: Mapping) -> Array:
    off = ops.abs(ops.sum(x, axis=-1) - 1.0) > SIMPLEX_TOLERANCE
    return ops.all(~(x < 0), axis=-1) & ~off


def _counts_of_n(x: Array, given: Mapping) -> Array:
    return ops.all(_is_count(x), axis=-1) & ~(ops.sum(x, axis=-1) != given["total_count"])


def _classes(x: Array, given: Mapping) -> Array:
    return _is_count(x) & ~(x > given["logits"].shape[-1] - 1)


def _ordered_classes(x: Array, given: Mapping) -> Array:
    return _is_count(x) & ~(x > given["cutpoints"].shape[-1])


_REGIONS = {
    "AsymmetricLaplace Cauchy Gumbel Laplace Logistic LowRankMultivariateNormal MultivariateNormal "
    "MultivariateStudentT Normal SoftLaplace Stable StudentT": Region("real", -INF, INF),
    "Chi2 Exponential FisherSnedecor FoldedDistribution Gamma Gompertz HalfCauchy HalfNormal "
    "Weibull":
        Region("positive", 0.0, INF),
    "InverseGamma LogNormal": Region("positive", 0.0, INF, has_low=False),
    "Beta BetaProportion Kumaraswamy RelaxedBernoulli": Region("[0, 1]", 0.0, 1.0),
    "ContinuousBernoulli": Region("[0, 1]", 0.0, 1.0, is_ours=False),
    "Bernoulli": Region("{0, 1}", 0.0, 1.0, is_ours=False),
    "GammaPoisson Geometric NegativeBinomial Poisson ZeroInflatedPoisson":
        Region("{0, 1, ...}", 0.0, INF, is_whole=True),
    "Binomial BetaBinomial": Region(None, 0.0, "total_count", is_whole=True),
    "Uniform TruncatedNormal": Region(None, "low", "high"),
    "DiscreteUniform": Region(None, "low", "high", is_whole=True),
    "Pareto": Region(None, "scale", INF),
    "AffineBeta": Region(None, "loc", lambda given: given["loc"] + given["scale"]),
    "VonMises": Region("circle", -math.pi, math.pi, is_ours=False),
    "Dirichlet": Region("simplex", inside=_simplex),
    "DirichletMultinomial Multinomial":
        Region("counts that sum to total_count", inside=_counts_of_n),
    "Categorical": Region("classes", inside=_classes),
    "OrderedLogistic": Region("classes", inside=_ordered_classes),
    "OneHotCategorical": Region("one-hot"),
    "DiscretizedLogistic": Region("levels"),
    "LKJ LKJCholesky": Region("correlations"),
}  # fmt: skip
TABLE = {name: region for names, region in _REGIONS.items() for name in names.split()}


def _end(end: Any, given: Mapping, absent: float) -> Any:
    if callable(end):
        return end(given)
    return given.get(end, absent) if isinstance(end, str) else end


def inside(family: str, x: Array, given: Mapping[str, Array]) -> Array | None:
    """[*batch] whether values lie in the support, edges included; true for NaN; traceable.

    Args:
        family: a distribution of `probgen.dist`.
        x: [*batch, *event] floats.
        given: its arguments by name.

    Returns:
        None where all floats are inside, or the library's class has to tell.
    """
    region = TABLE[family]
    if region.inside is not None:
        return region.inside(x, given)
    if not region.is_ours or region.low is None:
        return None
    low, high = _end(region.low, given, -INF), _end(region.high, given, INF)
    outside = []
    if not _is_infinite(low):
        outside.append(x < low if region.has_low else x <= low)
    if not _is_infinite(high):
        outside.append(x > high)
    if region.is_whole:
        outside.append(x != ops.floor(x))
    return ~functools.reduce(operator.or_, outside) if outside else None


def _is_infinite(end: Any) -> bool:
    return isinstance(end, float) and math.isinf(end)


class Support(NamedTuple):
    """Where a declared distribution has its mass.

    words: for messages; low, high: bounds of its values, NaN where they are computed; None where
    it is no interval.
    """

    words: str
    low: Any = None
    high: Any = None


def support_of(declaration: Any) -> Support | None:
    """The support of a declared distribution; None where its family does not tell it."""
    name, given = declaration.name, dict(getattr(declaration, "arguments", ()))
    if name == "MixtureSameFamily" and "component_distribution" in given:
        return support_of(given["component_distribution"])
    like = getattr(given.get("forward"), "like", None)
    if like is not None:  # the support of another distribution, such as a latent's prior
        return support_of(like)
    if name in ("Transformed", "Density", "ImproperUniform") and given:
        found = constraint_of(declaration)
        return Support(found.words, found.low, found.high)
    region = TABLE.get(name)
    if region is None or (region.words is None and not given):
        return None
    if region.low is None:
        return Support(region.words or "")
    plain = {k: _number(v) for k, v in given.items()}
    low, high = _end(region.low, plain, -INF), _end(region.high, plain, INF)
    shown = [f"{v:g}" if np.ndim(v) == 0 and not np.isnan(v) else "?" for v in (low, high)]
    return Support(region.words or f"[{shown[0]}, {shown[1]}]", low, high)


def constraint_of(declaration: Any) -> Constraint:
    """The support of a declaration that its user wrote, such as a dist.Density."""
    given = dict(declaration.arguments)
    word = given.get("support") or getattr(given.get("forward"), "support", "real")
    return constraint(word)


def _number(value: Any) -> np.ndarray:
    """A bound as numpy; NaN where the program computes it."""
    found = constant(value)
    is_number = found is not None and found.dtype.kind in "biuf"
    return np.asarray(found if is_number else math.nan, np.float64)


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


def finite_values(declaration: Any) -> np.ndarray | None:
    """All values of one draw of a discrete family, [K, *event], as its draws have them.

    None where there are infinitely many, or a computed number of them, or very many (counts that
    sum to a total).
    """
    name, given = declaration.name, dict(getattr(declaration, "arguments", ()))
    weights: Any = given.get("logits", given.get("probs", given.get("cutpoints", 0.0)))
    classes = np.shape(weights)[-1:]
    if name in ("Categorical", "OneHotCategorical") and classes:
        return np.arange(*classes) if name == "Categorical" else np.eye(*classes, dtype=np.float32)
    if name == "OrderedLogistic" and classes:
        return np.arange(classes[0] + 1)
    if name == "Bernoulli":
        return np.arange(2, dtype=np.float32)
    region, support = TABLE.get(name), support_of(declaration)
    if region is None or not region.is_whole or support is None or np.ndim(support.high):
        return None
    if not np.isfinite(support.low) or not np.isfinite(support.high):
        return None
    whole = np.arange(int(support.low), int(support.high) + 1)
    return whole if name == "DiscreteUniform" else whole.astype(np.float32)
