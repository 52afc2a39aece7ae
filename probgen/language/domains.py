"""Where the arguments of each distribution of `probgen.dist` may lie, in words and as tests.

    >>> outside("Gamma", "concentration", np.array([2.0, -0.5]))
    'got -0.5 (1 of 2 values), expected finite numbers above 0'

A test is written with operators alone, so it reads numpy on the host and arrays inside a trace
alike. Constants are checked when a program is bound (`check`). Computed arguments are checked in
every run, compiled or not, by `poison`, which turns what lies outside its domain into NaN: no
density, divergence or draw can make an answer of it, the non-finite guard meets it at the first
step, and `probgen.engine.explain` then says in words which argument it was. `low < high` is asked
of the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DeclarationError
from probgen.language import ops
from probgen.language.dist import Deferred

Array = Any
LARGEST = 2**31 - 1  # of a number that shapes a distribution: JAX counts in 32 bits


class Domain(NamedTuple):
    """`words` name what is expected; `holds(x)` is [...] true where it is met, less `event_ndim`
    axes on the right; `nan_by_itself`: every density of ours is NaN outside without a test."""

    words: str
    holds: Callable[[Array], Array]
    event_ndim: int = 0
    nan_by_itself: bool = False


def _is_finite(x: Array) -> Array:
    return (x - x) == 0  # inf - inf is NaN


def _is_whole(x: Array) -> Array:
    return _is_finite(x) & (x % 1 == 0)


def _are_weights(x: Array) -> Array:
    return (_is_finite(x) & (x >= 0)).all(-1) & (x.sum(-1) > 0)


def _diagonal(x: Array) -> Array:
    return x.diagonal(0, -2, -1)


def _everywhere(x: Array) -> Array:
    """[...] whether all entries of a matrix are true."""
    return x.all(-1).all(-1)


def _is_factor(x: Array) -> Array:
    """A Cholesky factor: lower triangular, the diagonal above 0."""
    lower = np.tril(x) if isinstance(x, np.ndarray) else ops.tril(x)
    return _everywhere(lower == x) & (_is_finite(_diagonal(x)) & (_diagonal(x) > 0)).all(-1)


def _is_symmetric(x: Array) -> Array:
    """Up to the rounding of a product of float32 matrices."""
    size = abs(_diagonal(x)).sum(-1)[..., None, None]
    return _everywhere(abs(x - x.swapaxes(-1, -2)) <= 1e-5 * size)


def _is_covariance(x: Array) -> Array:
    if not isinstance(x, np.ndarray):
        return _is_symmetric(x)  # inside a trace the Cholesky factor is NaN where it has none
    if not np.isfinite(x).all():
        return np.asarray(False)
    half = np.tril(x) + np.swapaxes(np.tril(x, -1), -1, -2)
    return _is_symmetric(x) & (np.linalg.eigvalsh(half) > 0).all(-1)


def _is_ordered(x: Array) -> Array:
    return (x[..., 1:] > x[..., :-1]).all(-1)


ANY = Domain("numbers", lambda x: x == x, nan_by_itself=True)
FINITE = Domain("finite numbers", _is_finite, nan_by_itself=True)
POSITIVE = Domain("finite numbers above 0", lambda x: (x > 0) & _is_finite(x))
NOT_NEGATIVE = Domain("finite numbers of at least 0", lambda x: (x >= 0) & _is_finite(x))
PROBABILITY = Domain("numbers in [0, 1]", lambda x: (x >= 0) & (x <= 1))
BETWEEN = Domain("numbers above 0 and below 1", lambda x: (x > 0) & (x < 1))
BELOW_INFINITY = Domain("numbers below infinity", lambda x: x < np.inf, nan_by_itself=True)
COUNT = Domain(
    f"whole numbers in 0 ... {LARGEST}", lambda x: _is_whole(x) & (x >= 0) & (x <= LARGEST)
)
SIZE = Domain(f"a whole number in 2 ... {LARGEST}", lambda x: _is_whole(x) & (x > 1))
WEIGHTS = Domain("weights of at least 0, not all of them 0, on the last axis", _are_weights, 1)
ORDERED = Domain("numbers that increase along the last axis", _is_ordered, 1)
FACTOR = Domain("a lower triangular matrix with a positive diagonal", _is_factor, 2)
COVARIANCE = Domain("a symmetric positive definite matrix", _is_covariance, 2)
STABILITY = Domain("numbers above 0, at most 2", lambda x: (x > 0) & (x <= 2))
SKEW = Domain("numbers in [-1, 1]", lambda x: (x >= -1) & (x <= 1))

# By the argument's name; what a family asks otherwise stands below.
BY_NAME: dict[str, Domain] = {
    **dict.fromkeys(
        ["scale", "rate", "concentration", "concentration1", "concentration0", "df", "df1", "df2",
         "alpha", "asymmetry", "temperature", "cov_diag"], POSITIVE,
    ),
    **dict.fromkeys(["loc", "logits", "cov_factor", "predictor", "low", "high"], FINITE),
    **dict.fromkeys(["probs", "gate"], PROBABILITY),
    **dict.fromkeys(["v", "log_density", "log_factor"], ANY),
    **dict.fromkeys(["total_count", "event_dim"], COUNT),
    **dict.fromkeys(["dim", "num_levels"], SIZE),
    **dict.fromkeys(["covariance_matrix", "precision_matrix"], COVARIANCE),
    "cutpoints": ORDERED, "mean": BETWEEN, "scale_tril": FACTOR, "skew": SKEW,
    "stability": STABILITY,
}  # fmt: skip
BY_FAMILY: dict[tuple[str, str], Domain] = {
    ("Categorical", "probs"): WEIGHTS,
    ("Categorical", "logits"): BELOW_INFINITY,
    ("Multinomial", "probs"): WEIGHTS,
    ("Multinomial", "logits"): BELOW_INFINITY,
    ("OneHotCategorical", "probs"): WEIGHTS,
    ("OneHotCategorical", "logits"): BELOW_INFINITY,
    ("NegativeBinomial", "total_count"): POSITIVE,
    ("Poisson", "rate"): NOT_NEGATIVE,
    ("ZeroInflatedPoisson", "rate"): NOT_NEGATIVE,
    ("RelaxedBernoulli", "probs"): BETWEEN,
    ("TruncatedNormal", "low"): ANY,
    ("TruncatedNormal", "high"): ANY,
    # log(scale) is in its density and its divergences, so that nothing is tested in a hot loop
    ("Normal", "scale"): POSITIVE._replace(nan_by_itself=True),
}
BELOW = {"low": "high"}  # arguments of which the first lies below the second
EQUAL_IS_FINE = {"DiscreteUniform"}


def domain(family: str, argument: str) -> Domain:
    """Where an argument of a family may lie; `ANY` for one that is no number."""
    return BY_FAMILY.get((family, argument), BY_NAME.get(argument, ANY))


def outside(family: str, argument: str, value: np.ndarray) -> str | None:
    """What is wrong with an argument's value, in words; None where all of it lies in its domain."""
    wanted = domain(family, argument)
    value = np.asarray(value)
    if value.dtype.kind not in "biuf" or value.ndim < wanted.event_ndim:
        return None  # no numbers, or no matrix: the library's own words say it better
    value = value.astype(np.float64)
    with np.errstate(invalid="ignore"):
        ok = np.asarray(wanted.holds(value))
    if ok.all():
        return None
    bad = value[~ok].reshape(-1, *value.shape[value.ndim - wanted.event_ndim :])
    count = f" ({len(bad)} of {ok.size} values)" if ok.size > 1 else ""
    shown = np.array2string(bad[0], precision=6, threshold=12, separator=", ").replace("\n", "")
    return f"got {shown}{count}, expected {wanted.words}"


def problems(deferred: Deferred, read: Callable[[Any], np.ndarray | None]) -> Iterator[str]:
    """Every argument of a declaration that lies outside its domain, in words.

    Args:
        deferred: the declaration; those that are its arguments are looked into as well.
        read: an argument as numpy, or None where its value is not known (inside a trace).
    """
    known: dict[str, np.ndarray] = {}
    for name, value in deferred.arguments:
        if isinstance(value, Deferred):
            yield from problems(value, read)
            continue
        found = read(value)
        if found is None:
            continue
        known[name] = found
        wrong = outside(deferred.name, name, found)
        if wrong is not None:
            yield f"{deferred.name}({name}=...): {wrong}"
    for low, high in BELOW.items():
        if low in known and high in known:
            gap = np.asarray(known[high], np.float64) - np.asarray(known[low], np.float64)
            if not (gap >= 0 if deferred.name in EQUAL_IS_FINE else gap > 0).all():
                yield (
                    f"{deferred.name}({low}=..., {high}=...): got {low} {np.max(known[low]):g} and "
                    f"{high} {np.min(known[high]):g}, expected {low} below {high}"
                )


def constant(value: Any) -> np.ndarray | None:
    """A number, list or numpy array as numpy; None for a framework's array and anything else."""
    if isinstance(value, bool | int | float | np.ndarray | np.generic):
        return np.asarray(value)
    if isinstance(value, list | tuple):
        parts = [constant(v) for v in value]
        if all(p is not None and p.shape == parts[0].shape for p in parts):  # type: ignore
            return np.asarray(value)
    return None


CURE = (
    "give a value inside, or compute it by a function that stays inside (ops.exp or ops.softplus "
    "for what is positive, ops.sigmoid for a probability, ops.softmax for weights)."
)


def check(site: str, deferred: Deferred, read: Callable[[Any], np.ndarray | None]) -> None:
    """Refuses a declaration of which an argument lies outside its domain.

    Raises:
        DeclarationError: names the site, the argument, its value and its domain.
    """
    for wrong in problems(deferred, read):
        raise DeclarationError(f"site {site!r}: {wrong}; {CURE}")


def poison(family: str, name: str, value: Array) -> Array:
    """A computed argument, NaN where it lies outside its domain; traceable.

    Nothing is done where the densities are NaN there by themselves, as a Normal's for scale < 0.
    """
    wanted = domain(family, name)
    if wanted.nan_by_itself or len(value.shape) < wanted.event_ndim:
        return value
    ok = wanted.holds(value)
    return ops.where(ok[(..., *(None,) * wanted.event_ndim)], value, float("nan"))
