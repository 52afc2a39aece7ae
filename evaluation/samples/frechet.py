"""Frechet distance between two sets of features, and its value at infinite N.

    FD = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)

the squared 2-Wasserstein distance of two Gaussians with those moments; unit: squared features. FD
of finite samples is too large: for equal Gaussian laws its mean is about bias / N with the constant
of `frechet_bias`. So N must be the same everywhere, and `FD_inf` is the intercept of a line in 1/N.
The name holds the features: "FD[pca50]"; only Inception's may be called FID.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import AlgorithmError, ShapeError
from probgen.evaluation.samples.estimate import Estimate
from probgen.evaluation.samples.features import featured
from probgen.evaluation.samples.resampling import jackknife
from probgen.language.declared import checked
from probgen.language.kinds import Count, TwoOrMore
from probgen.language.seeds import check_seed

Moment = np.ndarray | float  # a number in one dimension
SPLITS = (1, 2, 4)  # FD_inf looks at N, N/2 and N/4


class Frechet(NamedTuple):
    """What `frechet_distance` returns.

    Attributes:
        fd: the plain distance at this N.
        fd_inf: extrapolated to infinite N; may be slightly negative for equal laws.
    """

    fd: Estimate
    fd_inf: Estimate

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


@checked
def frechet_from_moments(mean1: Moment, cov1: Moment, mean2: Moment, cov2: Moment) -> float:
    """Squared 2-Wasserstein distance of N(mean1, cov1) and N(mean2, cov2).

    Both roots are of symmetric matrices, by their eigenvalues clipped at 0, so that rounding and
    singular covariances give neither complex numbers nor NaN.

    Args:
        mean1, mean2: [d].
        cov1, cov2: [d, d] symmetric.

    Raises:
        ShapeError: shapes that do not fit.

    Source: Dowson & Landau 1982, J. Multivar. Anal. 12, 450-455; Heusel et al. 2017,
    arXiv:1706.08500.
    """
    m1, m2 = np.atleast_1d(np.asarray(mean1, float)), np.atleast_1d(np.asarray(mean2, float))
    s1, s2 = np.atleast_2d(np.asarray(cov1, float)), np.atleast_2d(np.asarray(cov2, float))
    d = len(m1)
    if m1.shape != (d,) or m2.shape != (d,) or s1.shape != (d, d) or s2.shape != (d, d):
        raise ShapeError(
            f"frechet_from_moments: got means {m1.shape}, {m2.shape} and covariances {s1.shape}, "
            f"{s2.shape}, expected [d], [d], [d, d], [d, d]."
        )
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = root @ s2 @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross)


@checked
def frechet_bias(covariance: Moment, n_real: Count, n_fake: Count) -> float:
    """Expected FD of two finite samples of one Gaussian law, to first order in 1/n.

        (1/n_real + 1/n_fake) [tr S + 1/2 sum_ij l_i l_j (1 + [i = j]) / (l_i + l_j)]

    with l the eigenvalues of S; for S = I and equal n it is (2 d + d (d + 1) / 2) / n. It follows
    from FD(S, S + E) = 1/2 sum_ij E_ij^2 / (l_i + l_j) + O(E^3) in the eigenbasis of S and
    Var E_ij = l_i l_j (1 + [i = j]) (1/n_real + 1/n_fake).

    Args:
        covariance: [d, d].
        n_real, n_fake: sizes of the samples.
    """
    values = np.clip(np.linalg.eigvalsh(np.atleast_2d(covariance)), 0, None)
    values = values[values > values.max(initial=0.0) * 1e-12]
    product, total = np.multiply.outer(values, values), np.add.outer(values, values)
    bures = (product / total).sum() + (values / 2).sum()
    return float((1 / n_real + 1 / n_fake) * (values.sum() + bures / 2))


@checked
def frechet_distance(
    real: Any,
    fake: Any,
    *,
    features: Any = "raw",
    allow_unequal: bool = False,
    num_groups: TwoOrMore = 20,
    seed: int = 0,
) -> Frechet:
    """FD of two sets in a space of features, and extrapolated to infinite N, with standard errors.

    FD_inf: both sets are dealt into 1, 2 and 4 parts, FD is averaged over the parts of one size,
    and a line in 1/N is fitted to the three means by least squares; its value at 1/N = 0 is FD_inf.
    All errors are delete-group jackknife errors of the whole procedure.

    Args:
        real, fake: [n, *event] data.
        features: applied to both, see `as_features`: a function, a network, or a name ("raw",
            "pca50", "digit-net"); it goes into the result's name: "FD[pca50]".
        allow_unequal: compare sets of different sizes all the same.
        num_groups: of the jackknife.
        seed: of the dealing.

    Raises:
        AlgorithmError: sets of different sizes without `allow_unequal`.
        DataError: fewer than 8 data, or than two a group; not finite. ShapeError: different d.

    Source: Heusel et al. 2017, arXiv:1706.08500; Chong & Forsyth 2020, arXiv:1911.07023.
    """
    x, y, name, same = featured(real, fake, features, "frechet_distance", least=8)
    seed, d = check_seed(seed, "frechet_distance"), x.shape[1]
    if len(x) != len(y) and not allow_unequal:
        raise AlgorithmError(
            f"frechet_distance: got {len(x)} real and {len(y)} fake data, expected as many of "
            "each, since FD falls with N and is comparable at one N only; take equally many, or "
            "pass allow_unequal=True."
        )
    rng = np.random.default_rng(seed)
    x, y = rng.permutation(x), rng.permutation(y)
    fd, fd_inf = _at_sizes(x, y)
    errors = jackknife(
        _at_sizes, x, y, num_groups=num_groups, seed=seed + 1, where="frechet_distance"
    )
    bias = frechet_bias(np.cov(x, rowvar=False), len(x), len(y))
    common: dict[str, Any] = {
        "n_real": len(x), "n_fake": len(y), "seed": seed,
        "error_by": f"delete-group jackknife, {num_groups} groups",
    }  # fmt: skip
    smallest = min(len(x), len(y))
    return Frechet(
        Estimate(
            f"FD[{name}]", fd, float(errors[0]), expected=bias, bias="upward",
            notes=(*same, *_notes(fd, bias, smallest, d)),
            details={"dimension": d, "bias_at_equal_laws": bias, "unequal": len(x) != len(y)},
            **common,
        ),
        Estimate(
            f"FD_inf[{name}]", fd_inf, float(errors[1]), expected=0.0, bias="none",
            notes=(*same, *_inf_notes(smallest, d)),
            details={"dimension": d, "sizes": [smallest // k for k in SPLITS]},
            **common,
        ),
    )  # fmt: skip


def _fd(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_from_moments(
        x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
    )


def _at_sizes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[FD at all data, intercept of the line in 1/N]."""
    inverse, values = [], []
    for parts in SPLITS:
        n, m = len(x) // parts, len(y) // parts
        blocks = [_fd(x[i * n : (i + 1) * n], y[i * m : (i + 1) * m]) for i in range(parts)]
        inverse.append((1 / n + 1 / m) / 2)
        values.append(np.mean(blocks))
    _, intercept = np.polyfit(inverse, values, 1)
    return np.array([values[0], intercept])


def _notes(fd: float, bias: float, n: int, d: int) -> tuple[str, ...]:
    notes = []
    if n <= d:
        notes.append(
            f"{n} data for {d} features: the covariances are singular, FD at this N means little; "
            f"use more than {10 * d} data or fewer features"
        )
    elif n < 10 * d:
        notes.append(f"{n} data for {d} features, fewer than ten a feature: FD is far too large")
    if fd < 2 * bias:
        part = f"{math.floor(100 * bias / fd)} % of the value" if fd > bias else "no less than this"
        notes.append(
            f"equal laws would give about {bias:.3g} at this N, {part}: read FD_inf instead"
        )
    return tuple(notes)


def _inf_notes(n: int, d: int) -> tuple[str, ...]:
    smallest = n // SPLITS[-1]
    if smallest >= 2 * d:
        return ()
    return (
        f"its smallest N, {smallest}, is below twice the {d} features: the bias is no line in 1/N "
        "there and the extrapolation cannot be trusted",
    )
