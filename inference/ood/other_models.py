"""What scores of several models share: who a model is, whether it fits the data, its log weights.

Every model of a score draws the same noise for a datum (common random numbers): two equal models
give equal numbers, and much of the Monte Carlo error cancels in a difference. The error of a
combination is therefore taken particle by particle, not from the models' own errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import logsumexp

from probgen.engine.bound import Bound
from probgen.engine.data_support import SupportCheck
from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext, Function, Rows, Values
from probgen.errors import AlgorithmError, DeclarationError, ProbgenError
from probgen.inference.likelihood.guide_terms import GuideTerms, weights_of
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.likelihood.interval import error_of_mean
from probgen.inference.ood.moments import check_guide
from probgen.language.identity import identity


def weighted(context: EvaluationContext, num_particles: int, at_once: int) -> Function:
    """What `IWAE` gives of the context's model, with its log weights, "log_w" [n, K]."""
    found = context.function(IWAE(num_particles, at_once))
    terms = context.function(GuideTerms(num_particles, at_once))
    return lambda rows, ids: found(rows, ids) | {"log_w": weights_of(terms(rows, ids))}


def shown(fitted: Fitted) -> str:
    """A model in one short line, the same for equal declarations, parameters and inputs."""
    return f"<{fitted.model.name} {identity(fitted, fitted.model.name)[:16]}>"


def require_fitted(who: str, what: str, fitted: object) -> None:
    """Refuses what is no fitted model.

    Raises:
        DeclarationError: says what it is.
    """
    if not isinstance(fitted, Fitted):
        raise DeclarationError(
            f"{who}: got {type(fitted).__name__} as {what}, expected a Fitted: a model with "
            "parameters, as pg.fit or Fitted.from_pretrained give it."
        )


def bind_other(
    context: EvaluationContext, who: str, what: str, fitted: Fitted
) -> Callable[[Rows], None]:
    """Holds another model against the evaluated one; the result holds it against rows of data.

    Raises:
        ShapeError: its data have another shape. AlgorithmError: it observes other sites, or gives a
        density where the evaluated model gives probabilities; either has no guide. SupportError (by
        the result): data outside its support.
    """
    mine, there = context.bound, context.at(fitted)
    with _about(who, what):
        other, params = there.bound, there.params
    if set(other.observed) != set(mine.observed):
        raise AlgorithmError(
            f"{who}: {what} observes the sites {sorted(other.observed)}, expected "
            f"{sorted(mine.observed)} as the evaluated model does; fit it to the same data."
        )
    for name in mine.observed:
        a, b = mine.structure.sites[name], other.structure.sites[name]
        if a.is_discrete != b.is_discrete:
            kinds = ["a probability" if s.is_discrete else "a density" for s in (a, b)]
            raise AlgorithmError(
                f"{who}: site {name!r} has {kinds[0]} in the evaluated model and {kinds[1]} in "
                f"{what}, expected the same in both, since nats of the two cannot be compared; use "
                "likelihoods of one kind."
            )
    check_guide(mine, who)
    check_guide(other, f"{who}, {what}")
    check = SupportCheck(other, params, context.backend.key(0))

    def hold(rows: Rows) -> None:
        with _about(who, what):
            check(rows)

    return hold


@contextlib.contextmanager
def _about(who: str, what: str) -> Iterator[None]:
    """Says in an error of probgen which model it is about."""
    try:
        yield
    except ProbgenError as error:
        raise type(error)(f"{who}, {what}: {error}") from error


def combined_error(
    slopes: Sequence[np.ndarray | float], log_ws: Sequence[np.ndarray]
) -> np.ndarray:
    """[n] standard error of a function of several IWAE estimates that share their noise.

    By the delta method: with relative weights r_mk = w_mk / mean_k w_mk the estimate moves by
    (1/K) sum_k sum_m slope_m (r_mk - 1), whose error is that of a mean (`error_of_mean`).

    Args:
        slopes: derivative of the result by each estimate, numbers or [n].
        log_ws: log weights [n, K] of each model.
    """
    moved = 0.0
    for slope, log_w in zip(slopes, log_ws, strict=True):
        log_w = np.asarray(log_w, np.float64)
        num = log_w.shape[1]
        relative = num * np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
        moved = moved + np.reshape(slope, (-1, 1)) * (relative - 1.0)
    return error_of_mean(np.asarray(moved))


def with_error(
    values: Values, slopes: Sequence[np.ndarray | float], log_ws: Sequence[np.ndarray]
) -> Values:
    """`values` with "standard_error" of `combined_error` where there are two particles or more."""
    if log_ws[0].shape[1] < 2:
        return values
    return values | {"standard_error": combined_error(slopes, log_ws)}


def observed_site(bound: Bound, who: str) -> str:
    """The one site that the data observe ("x" where there are several).

    Raises:
        AlgorithmError: none, or several without an "x".
    """
    names = bound.observed
    if len(names) == 1:
        return names[0]
    if "x" in names:
        return "x"
    raise AlgorithmError(
        f"{who}: the data observe the sites {list(names)} of {bound.model.name!r}, expected one, "
        "or one called 'x'; rename it, or give the others as inputs."
    )
