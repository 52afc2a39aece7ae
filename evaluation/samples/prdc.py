"""Precision, recall, density, coverage: do the samples lie where the data lie, and everywhere?

A ball stands around each datum, as wide as the distance to its k-th neighbour in its own set, the
datum itself not counted; "in" is strict, <.

    precision   share of fake data in any real ball
    recall      share of real data in any fake ball
    density     number of real balls that hold a fake datum, / k, averaged over fake data
    coverage    share of real balls that hold a fake datum

For equal laws density is 1 on average and coverage `expected_coverage`; precision and recall have
no value of that kind: they depend on k, n and the dimension, so compare them at equal n only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from probgen.errors import AlgorithmError
from probgen.evaluation.samples.estimate import Estimate, share_interval
from probgen.evaluation.samples.features import featured
from probgen.evaluation.samples.resampling import check_groups, deal, jackknife_error
from probgen.language.declared import checked
from probgen.language.kinds import Count, Many, TwoOrMore
from probgen.language.seeds import check_seed

CHUNK = 2**22  # distances held at a time


class PRDC(NamedTuple):
    """What `prdc` returns, in the order of its name."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


@checked
def expected_coverage(n_real: Count, n_fake: Count, *, k: Many = 5) -> float:
    """Coverage for equal laws: 1 - prod_{i=1..k} (N - i) / (N + M - i).

    A real ball is empty when the k nearest of the N - 1 other real and M fake data are all real.
    """
    i = np.arange(1, k + 1)
    return float(1 - np.prod((n_real - i) / (n_real + n_fake - i)))


@checked
def prdc(
    real: Any,
    fake: Any,
    *,
    features: Any = "raw",
    k: Many = 5,
    num_groups: TwoOrMore = 20,
    seed: int = 0,
) -> PRDC:
    """The four measures with delete-group jackknife errors (balls redrawn without the group).

    The errors err on the safe side: for normal laws they are 1.2 to 1.9 times the spread of the
    measures over new data. Time and memory: n m distances, in chunks.

    Args:
        real, fake: [N, *event] and [M, *event] data.
        features: of both, see `as_features`: a function or network that is applied to the data, or
            a name ("raw", "pca50", "digit-net"); the result is called by it.
        k: which neighbour sets a ball's radius.
        num_groups: of the jackknife.
        seed: of the dealing into groups.

    Raises:
        AlgorithmError: k is not below the smaller set's size without one group.
        DataError: fewer than two data a group, not finite. ShapeError: different d.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797.
    """
    x, y, title, notes = featured(real, fake, features, "prdc")
    seed = check_seed(seed, "prdc")
    check_groups(num_groups, len(x), len(y), where="prdc")
    left = min(len(x) - -(-len(x) // num_groups), len(y) - -(-len(y) // num_groups))
    if k >= left:
        raise AlgorithmError(
            f"prdc: got k={k} for {len(x)} real and {len(y)} fake data, expected a k below {left}, "
            "what is left of the smaller set without one group; draw more samples, or lower k."
        )
    rng = np.random.default_rng(seed)
    groups = deal(len(x), num_groups, rng), deal(len(y), num_groups, rng)
    values = measures(x, y, k, *groups, num_groups)
    errors = jackknife_error(values[1:])
    cover = expected_coverage(len(x), len(y), k=k)

    def estimate(i: int, name: str, expected: float | None, is_share: bool) -> Estimate:
        value, error = float(values[0, i]), float(errors[i])
        n = len(y) if name == "precision" else len(x)
        return Estimate(
            f"{name}[{title}]", value, error, len(x), len(y),
            interval=share_interval(value, error, n) if is_share else None,
            expected=expected, better="larger" if expected is None else "nearer", bias="unknown",
            error_by=f"delete-group jackknife, {num_groups} groups",
            details={"k": k}, seed=seed, notes=notes,
        )  # fmt: skip

    return PRDC(
        estimate(0, "precision", None, True),
        estimate(1, "recall", None, True),
        estimate(2, "density", 1.0, False),
        estimate(3, "coverage", cover, True),
    )


def measures(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    group_x: np.ndarray | None = None,
    group_y: np.ndarray | None = None,
    num_groups: int = 0,
) -> np.ndarray:
    """[1 + G, 4] precision, recall, density, coverage: of all data, then without each group.

    Distances are computed once, in chunks of rows; only the radii and the comparison with them are
    done again for each group.
    """
    group_x = np.full(len(x), -1) if group_x is None else group_x
    group_y = np.full(len(y), -1) if group_y is None else group_y
    radius_x, radius_y = radii(x, k, group_x, num_groups), radii(y, k, group_y, num_groups)
    count = 1 + num_groups
    balls = np.zeros((count, len(y)))  # real balls that hold each fake datum
    reached = np.zeros(count)  # real data in any fake ball
    covered = np.zeros(count)  # real balls with a fake datum
    rows = max(1, CHUNK // len(y))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        distance = cdist(x[part], y)
        for g in range(count):
            kept_x, kept_y = group_x[part] != g - 1, group_y != g - 1
            if g == 0:
                kept_x, kept_y = np.ones_like(kept_x), np.ones_like(kept_y)
            in_real = distance < radius_x[g, part, None]
            in_real[~kept_x] = False
            balls[g] += in_real.sum(0)
            in_real[:, ~kept_y] = False
            covered[g] += in_real.any(1).sum()
            in_fake = distance < radius_y[g]
            in_fake[~kept_x] = False
            in_fake[:, ~kept_y] = False
            reached[g] += in_fake.any(1).sum()
    values = np.empty((count, 4))
    for g in range(count):
        kept = group_y != g - 1 if g else np.ones(len(y), bool)
        n = (group_x != g - 1).sum() if g else len(x)
        held = balls[g, kept]
        values[g] = (held > 0).mean(), reached[g] / n, held.mean() / k, covered[g] / n
    return values


def radii(x: np.ndarray, k: int, group: np.ndarray, num_groups: int) -> np.ndarray:
    """[1 + G, n] distance to the k-th other datum: among all, then among all but each group."""
    n = len(x)
    out = np.empty((1 + num_groups, n))
    near = min(n - 1, 4 * k + 8)  # neighbours kept; a row where they do not suffice takes all
    rows = max(1, CHUNK // n)
    for start in range(0, n, rows):
        own = np.arange(start, min(start + rows, n))
        distance = cdist(x[own], x)
        distance[np.arange(len(own)), own] = np.inf
        index = np.argpartition(distance, near - 1, axis=1)[:, :near]
        index = np.take_along_axis(
            index, np.argsort(np.take_along_axis(distance, index, 1), axis=1), 1
        )
        nearest = np.take_along_axis(distance, index, 1)
        out[0, own] = nearest[:, k - 1]
        for g in range(num_groups):
            rank = np.cumsum(group[index] != g, axis=1)
            place = np.argmax(rank == k, axis=1)
            out[1 + g, own] = nearest[np.arange(len(own)), place]
            for row in np.flatnonzero(rank[:, -1] < k):
                others = distance[row, group != g]
                out[1 + g, own[row]] = np.partition(others, k - 1)[k - 1]
    return out
