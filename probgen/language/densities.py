"""Log densities of the families, written once with `ops`; backends put them into their own classes.

Each is nats, the density at a value where it has one, -inf outside the support and NaN for a NaN
argument. Edges belong to the support where the density there is finite, as in scipy. Masses of
large counts and densities with large parameters are sums of the terms of
`probgen.language.stirling`, none of which is larger than the result. In float32 the error is below
0.01 nats plus 2e-6 of the result for counts and parameters up to 1e7 (tests), counting the
arguments as exact.

Source: Loader 2000, "Fast and accurate computation of binomial probabilities". Betas, gammas and
their mixtures with counts by Bayes' rule: p(x) = p(x | p) p(p) / p(p | x) at p = E[p | x].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from probgen.language import ops, supports
from probgen.language.stirling import (
    HALF_LOG_2PI,
    at_edge,
    deviance,
    log1p_square,
    log_binomial,
    log_rising,
    log_stirling,
    xlogy,
)
from probgen.language.truncated import log_prob as truncated_normal

Array = Any


# ---- densities -----------------------------------------------------------------------------------


class Density(NamedTuple):
    """`log_prob(x, *arguments)` (None: the library's) in the support, else -inf.

    names: the arguments, as both libraries' classes call them.
    middle: stands for a value outside, so that gradients there are zero and not NaN: a number, or
        a function of the arguments.
    edges: values where the density may be infinite or zero, as the arguments have it.
    """

    names: tuple[str, ...]
    log_prob: Callable | None
    middle: float | Callable = 0.5
    edges: tuple[float, ...] = ()
    event_ndim: int = 0


def _gamma(x: Array, a: Array, rate: Array) -> Array:
    safe = ops.where(x <= 0, 1.0, x)
    inner = ops.log(a) - ops.log(safe) - log_stirling(a) - deviance(a, rate * safe)
    return ops.where(x == 0, at_edge(a, ops.log(rate)), inner)


def _inverse_gamma(x: Array, a: Array, rate: Array) -> Array:
    return _gamma(1.0 / x, a, rate) - 2.0 * ops.log(x)


def _beta_inner(x: Array, y: Array, a: Array, b: Array) -> Array:
    """The Beta density at x = 1 - y, less -log(x y)."""
    return ops.log(a) + ops.log(b) - ops.log(a + b) + log_binomial(a, a + b, x, y)


def _beta(x: Array, a: Array, b: Array) -> Array:
    safe = ops.where((x <= 0) | (x >= 1), 0.5, x)
    inner = _beta_inner(safe, 1.0 - safe, a, b) - ops.log(safe) - ops.log1p(-safe)
    inner = ops.where(x == 0, at_edge(a, ops.log(b)), inner)
    return ops.where(x == 1, at_edge(b, ops.log(a)), inner)


def _affine_beta(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return _beta((x - loc) / scale, a, b) - ops.log(scale)


def _fisher(x: Array, df1: Array, df2: Array) -> Array:
    a, b = 0.5 * df1, 0.5 * df2
    safe = ops.where(x <= 0, 1.0, x)
    total = df1 * safe + df2
    inner = _beta_inner(df1 * safe / total, df2 / total, a, b) - ops.log(safe)
    return ops.where(x == 0, at_edge(a, 0.0 * a), inner)


def _kumaraswamy(x: Array, a: Array, b: Array) -> Array:
    safe = ops.where((x <= 0) | (x >= 1), 0.5, x)
    rest = ops.log(-ops.expm1(a * ops.log(safe)))  # log(1 - x^a)
    inner = ops.log(a) + ops.log(b) + (a - 1.0) * ops.log(safe) + (b - 1.0) * rest
    inner = ops.where(x == 0, at_edge(a, ops.log(b)), inner)
    return ops.where(x == 1, at_edge(b, ops.log(a)), inner)


def _weibull(x: Array, scale: Array, k: Array) -> Array:
    safe = ops.where(x <= 0, scale, x)
    log_z = ops.log(safe / scale)
    inner = ops.log(k) - ops.log(scale) + (k - 1.0) * log_z - ops.exp(k * log_z)
    return ops.where(x == 0, at_edge(k, -ops.log(scale)), inner)


def _dirichlet(x: Array, a: Array) -> Array:
    total = ops.sum(a, axis=-1, keepdims=True)
    parts = ops.sum(_gamma(x, a, total + 0.0 * a), axis=-1)
    return parts - (ops.log(total) - log_stirling(total))[..., 0]


def _poisson(x: Array, rate: Array) -> Array:
    return -log_stirling(x) - deviance(x, rate)


def _zero_inflated(x: Array, rate: Array, gate: Array) -> Array:
    is_open, is_shut = ~(gate >= 1), gate <= 0
    rest = ops.where(is_open, ops.log1p(-ops.where(is_open, gate, 0.0 * gate)), -math.inf)
    rest = rest + _poisson(x, rate)
    zero = ops.log(ops.where(is_shut, 1.0 + 0.0 * gate, gate)) + 0.0 * rest
    both = ops.logsumexp(ops.stack([zero, ops.where(is_open, rest, zero - 1e4)]), axis=0)
    return ops.where((x == 0) & ~is_shut, both, rest)


def _binomial_probs(x: Array, n: Array, p: Array) -> Array:
    return log_binomial(x, n + 0.0 * p, p, 1.0 - p)


def _binomial_logits(x: Array, n: Array, logits: Array) -> Array:
    return log_binomial(x, n + 0.0 * logits, ops.sigmoid(logits), ops.sigmoid(-logits))


def _negative_binomial(x: Array, r: Array, p: Array, q: Array) -> Array:
    return ops.log(r) - ops.log(r + x) + log_binomial(r + 0.0 * x, r + x, q, p)


def _beta_binomial(x: Array, n: Array, a: Array, b: Array) -> Array:
    n = n + 0.0 * a
    a1, b1 = a + x, b + (n - x)
    p, q = (ops.stop_gradient(each / (a1 + b1)) for each in (a1, b1))
    posterior = ops.log(a1) + ops.log(b1) - ops.log(a1 + b1)
    posterior = posterior + log_stirling(a1 + b1) - log_stirling(a1) - log_stirling(b1)
    return log_binomial(x, n, p, q) + _beta_inner(p, q, a, b) - posterior


def _multinomial(x: Array, n: Array, logits: Array) -> Array:
    p = ops.softmax(logits, axis=-1)
    n = n + 0.0 * p[..., 0]
    each = log_stirling(x) + deviance(x, n[..., None] * p)
    return log_stirling(n) - ops.sum(each, axis=-1)


def _dirichlet_multinomial(x: Array, n: Array, a: Array) -> Array:
    n = (n + 0.0 * a[..., 0])[..., None]
    total, a1 = ops.sum(a, axis=-1, keepdims=True), a + x
    p = ops.stop_gradient(a1 / (total + n))
    each = ops.log(a) - log_stirling(a) - deviance(a, total * p)
    each = each - (ops.log(a1) - log_stirling(a1)) - log_stirling(x) - deviance(x, n * p)
    whole = log_stirling(n) - (ops.log(total) - log_stirling(total))
    whole = whole + ops.log(total + n) - log_stirling(total + n)
    return whole[..., 0] + ops.sum(each, axis=-1)


def _categorical(x: Array, logits: Array) -> Array:
    return _pick(ops.log_softmax(logits, axis=-1), x)


def _pick(table: Array, x: Array) -> Array:
    """table[..., x], broadcast over the leading axes of both."""
    shape = (0.0 * table[..., 0] + 0.0 * x).shape
    table = ops.broadcast_to(table, (*shape, table.shape[-1]))
    index = ops.cast(ops.broadcast_to(x, shape), "int64")
    return ops.take_along_axis(table, index[..., None], axis=-1)[..., 0]


def _ordered_logistic(x: Array, predictor: Array, cutpoints: Array) -> Array:
    """log(s(b) - s(a)) with a, b the cutpoints around a class, less the predictor."""
    at = cutpoints - predictor[..., None]
    a, b = at[..., :-1], at[..., 1:]
    inner = ops.log_sigmoid(b) + ops.log_sigmoid(-a) + ops.log(-ops.expm1(a - b))
    first, last = ops.log_sigmoid(at[..., :1]), ops.log_sigmoid(-at[..., -1:])
    return _pick(ops.concatenate([first, inner, last], axis=-1), x)


def _student(x: Array, df: Array, loc: Array, scale: Array) -> Array:
    # df may be huge: log1p(z^2 / df) df keeps the Gaussian limit
    z = (x - loc) / scale
    rising = log_rising(0.5 * df, 0.5 + 0.0 * df)
    return (
        rising - HALF_LOG_2PI - ops.log(scale) - 0.5 * (df + 1.0) * log1p_square(z / ops.sqrt(df))
    )


def _multivariate_student(x: Array, df: Array, loc: Array, tril: Array) -> Array:
    dim = tril.shape[-1]
    z = ops.solve_triangular(tril, (x - loc)[..., None])[..., 0]
    log_det = ops.sum(ops.log(ops.diagonal(tril)), axis=-1)
    spread = 0.5 * (df + dim) * ops.log1p(ops.sum(z * z, axis=-1) / df)
    return log_rising(0.5 * df, 0.5 * dim + 0.0 * df) - dim * HALF_LOG_2PI - log_det - spread


def _von_mises(x: Array, loc: Array, k: Array) -> Array:
    # k cos(t) - log I0(k), with k taken out of both
    return (
        -2.0 * k * ops.square(ops.sin(0.5 * (x - loc))) - 2.0 * HALF_LOG_2PI - ops.log(ops.i0e(k))
    )


def _relaxed_bernoulli(x: Array, temperature: Array, logits: Array) -> Array:
    """sigmoid((logits + L) / temperature), L logistic: a Bernoulli for a low temperature."""
    inner = (x > 0) & (x < 1)
    safe = ops.where(inner, x, 0.5 + 0.0 * x)
    log_x, log_y = ops.log(safe), ops.log1p(-safe)
    gap = logits - temperature * (log_x - log_y)
    found = ops.log(temperature) + ops.log_sigmoid(gap) + ops.log_sigmoid(-gap) - log_x - log_y
    found = ops.where(x == 0, at_edge(temperature, -logits), found)
    return ops.where(x == 1, at_edge(temperature, logits), found)


def _log_normal(x: Array, loc: Array, scale: Array) -> Array:
    log_x = ops.log(x)
    return -0.5 * ops.square((log_x - loc) / scale) - HALF_LOG_2PI - ops.log(scale) - log_x


def _half_normal(x: Array, scale: Array) -> Array:
    return -0.5 * ops.square(x / scale) - HALF_LOG_2PI - ops.log(scale) + math.log(2.0)


def _cauchy(x: Array, loc: Array, scale: Array) -> Array:
    return -math.log(math.pi) - ops.log(scale) - log1p_square((x - loc) / scale)


def _bernoulli(x: Array, p: Array) -> Array:
    return xlogy(x, p + 0.0 * x) + _log_failures(1.0 - x, p + 0.0 * x)


def _log_failures(count: Array, p: Array) -> Array:
    """count log(1 - p), 0 where the count is."""
    return count * ops.log1p(-ops.where(count == 0, 0.0 * p, p))


_LESS = ("concentration1", "concentration0")

TABLE: dict[str, Density] = {
    "AffineBeta": Density(
        (*_LESS, "loc", "scale"), _affine_beta,
        lambda a, b, loc, scale: loc + 0.5 * scale,
    ),
    "BernoulliProbs": Density(("probs",), _bernoulli),
    "Beta": Density(_LESS, _beta, edges=(0.0, 1.0)),
    "BetaBinomial": Density(("total_count", *_LESS), _beta_binomial, 0.0),
    "BetaProportion": Density(_LESS, _beta, edges=(0.0, 1.0)),
    "BinomialLogits": Density(("total_count", "logits"), _binomial_logits, 0.0),
    "BinomialProbs": Density(("total_count", "probs"), _binomial_probs, 0.0),
    "CategoricalLogits": Density(("logits",), _categorical, 0.0),
    "Cauchy": Density(("loc", "scale"), _cauchy),
    "Chi2": Density(("concentration", "rate"), _gamma, edges=(0.0,)),
    "Dirichlet": Density(("concentration",), _dirichlet, edges=(0.0,), event_ndim=1),
    "DirichletMultinomial": Density(
        ("total_count", "concentration"), _dirichlet_multinomial, 0.0, event_ndim=1
    ),
    "DiscreteUniform": Density(
        ("low", "high"), lambda x, low, high: 0.0 * x - ops.log(1.0 + high - low + 0.0 * x),
        0.0,
    ),
    "Exponential": Density(
        ("rate",), lambda x, rate: ops.log(rate) - rate * x
    ),
    "FisherSnedecor": Density(("df1", "df2"), _fisher, edges=(0.0,)),
    "FoldedDistribution": Density((), None),
    "Gamma": Density(("concentration", "rate"), _gamma, edges=(0.0,)),
    "GammaPoisson": Density(
        ("concentration", "rate"),
        lambda x, a, rate: _negative_binomial(x, a, 1.0 / (1.0 + rate), rate / (1.0 + rate)),
        0.0,
    ),
    "GeometricLogits": Density(
        ("logits",), lambda x, eta: ops.log_sigmoid(eta) + x * ops.log_sigmoid(-eta), 0.0
    ),
    "GeometricProbs": Density(
        ("probs",), lambda x, p: ops.log(p) + _log_failures(x, p + 0.0 * x), 0.0
    ),
    "Gompertz": Density(
        ("concentration", "rate"),
        lambda x, a, rate: ops.log(a) + ops.log(rate) + rate * x - a * ops.expm1(rate * x),
    ),
    "HalfCauchy": Density(
        ("scale",), lambda x, s: math.log(2.0) + _cauchy(x, 0.0, s)
    ),
    "HalfNormal": Density(("scale",), _half_normal),
    "InverseGamma": Density(("concentration", "rate"), _inverse_gamma),
    "Kumaraswamy": Density(_LESS, _kumaraswamy, edges=(0.0, 1.0)),
    "LogNormal": Density(("loc", "scale"), _log_normal),
    "MultinomialLogits": Density(
        ("total_count", "logits"), _multinomial, 0.0, event_ndim=1
    ),
    "MultivariateStudentT": Density(("df", "loc", "scale_tril"), _multivariate_student),
    "NegativeBinomialLogits": Density(
        ("total_count", "logits"),
        lambda x, r, eta: _negative_binomial(x, r, ops.sigmoid(eta), ops.sigmoid(-eta)),
        0.0,
    ),
    "NegativeBinomialProbs": Density(
        ("total_count", "probs"), lambda x, r, p: _negative_binomial(x, r, p, 1.0 - p), 0.0
    ),
    "OrderedLogistic": Density(
        ("predictor", "cutpoints"), _ordered_logistic, 0.0
    ),
    "Pareto": Density(
        ("scale", "alpha"),
        lambda x, s, a: ops.log(a) - ops.log(s) - (a + 1.0) * ops.log(x / s),
        lambda s, a: s,
    ),
    "Poisson": Density(("rate",), _poisson, 0.0),
    "RelaxedBernoulliLogits": Density(
        ("temperature", "logits"), _relaxed_bernoulli, edges=(0.0, 1.0)
    ),
    "StudentT": Density(("df", "loc", "scale"), _student),
    "TruncatedNormal": Density(
        ("loc", "scale", "low", "high"), truncated_normal,
        lambda loc, scale, low, high: ops.clip(loc, low, high),
    ),
    "Uniform": Density(
        ("low", "high"), lambda x, low, high: 0.0 * x - ops.log(high - low + 0.0 * x),
        lambda low, high: low,
    ),
    "VonMises": Density(("loc", "concentration"), _von_mises),
    "Weibull": Density(("scale", "concentration"), _weibull, edges=(0.0,)),
    "ZeroInflatedPoisson": Density(("rate", "gate"), _zero_inflated, 0.0),
}  # fmt: skip


def _like(value: Array, arguments: tuple[Any, ...]) -> tuple[Array, ...]:
    return tuple(ops.ops_for(value).asarray(a, value) for a in arguments)


def log_prob(
    key: str, value: Array, arguments: tuple[Any, ...], otherwise: Callable | None = None
) -> Array:
    """[*batch] log density of `TABLE[key]`, nats: -inf outside the support, NaN for NaN.

    Args:
        key: a name of the table.
        value: [*batch, *event] numbers; integers count as floats.
        arguments: in the order of the table's names.
        otherwise: the library's density, where the table has none but a support.
    """
    entry, value = TABLE[key], value * 1.0
    arguments = _like(value, arguments)
    density = entry.log_prob or otherwise
    ok = _inside(key, value, arguments)
    if ok is None:
        return density(value, *arguments)  # type: ignore[misc]
    middle = entry.middle(*arguments) if callable(entry.middle) else entry.middle
    wide = ok[(..., *(None,) * entry.event_ndim)]
    found = density(ops.where(wide, value, middle), *arguments)  # type: ignore[misc]
    return ops.where(ok, found, -math.inf)


def _inside(key: str, value: Array, arguments: tuple[Array, ...]) -> Array | None:
    given = dict(zip(TABLE[key].names, arguments, strict=True))
    return supports.inside(family(key), value, given)


def inside(key: str, value: Array, arguments: tuple[Any, ...]) -> Array | None:
    """[*batch] whether a value lies in the support, edges included; None: the library knows."""
    return _inside(key, value * 1.0, _like(value * 1.0, arguments))


def family(key: str) -> str:
    """The distribution of `probgen.dist` that an entry of the table belongs to."""
    return key.removesuffix("Probs").removesuffix("Logits")
