"""Can anything tell them apart? A classifier, projections onto lines, nearest training data.

c2st                 accuracy of a classifier on data it has not seen; 1/2 for equal laws
sliced_wasserstein   (mean over directions of W_2^2 of the projections)^1/2, features' unit
memorisation         are the samples nearer to the training data than fresh data are?
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from scipy.stats import binomtest

from probgen.errors import DataError
from probgen.evaluation.samples.checks import as_matrix, as_pair
from probgen.evaluation.samples.estimate import Estimate, wilson
from probgen.evaluation.samples.features import featured, features_for
from probgen.evaluation.samples.resampling import jackknife
from probgen.language.declared import checked
from probgen.language.kinds import NonNegative, Resamples, TwoOrMore, having
from probgen.language.seeds import check_seed

Named = Literal["logistic", "knn"]
Classifier = Annotated[Any, having("a scikit-learn classifier", "fit", "predict")]


@checked
def c2st(
    real: Any,
    fake: Any,
    *,
    features: Any = "raw",
    classifier: Named | Classifier = "logistic",
    seed: int = 0,
) -> Estimate:
    """Classifier two-sample test: held-out accuracy with a binomial interval.

    The classifier learns from half of each set and is asked about the other half, as many real as
    fake, so that guessing gives 1/2 and the answers are independent given the classifier. (The
    folds of a cross-validation are not: its accuracy spreads a tenth wider than the binomial, and
    a nominal 5 % test rejects equal laws in 9 to 14 % of cases.)

    Args:
        real, fake: [n, *event] and [m, *event] data.
        features: of both, see `as_features`: a function or network that is applied to the data, or
            a name ("raw", "pca50", "digit-net"); the result is called by it.
        classifier: "logistic" (sees means), "knn" (sees any difference in few dimensions), or a
            scikit-learn classifier.
        seed: of the halves.

    Returns:
        n counts the data asked about; details hold "p_value", one-sided: the chance of so high an
        accuracy by guessing, and "num_train", of each set.

    Raises:
        DeclarationError: no such classifier. DataError: fewer than 10 of either. ShapeError.

    Source: Lopez-Paz & Oquab 2017, arXiv:1610.06545.
    """
    seed = check_seed(seed, "c2st")
    x, y, name, notes = featured(real, fake, features, "c2st", least=10)
    rng, n = np.random.default_rng(seed), min(len(x), len(y))
    x, y = rng.permutation(x)[:n], rng.permutation(y)[:n]
    num_train = n // 2
    num_test = n - num_train
    model, title = _classifier(classifier, num_train)
    model.fit(np.concatenate([x[:num_train], y[:num_train]]), np.repeat([0, 1], num_train))
    said = model.predict(np.concatenate([x[num_train:], y[num_train:]]))
    right = int((said == np.repeat([0, 1], num_test)).sum())
    total = 2 * num_test
    share = right / total
    p_value = float(binomtest(right, total, 0.5, alternative="greater").pvalue)
    return Estimate(
        f"C2ST {title}[{name}]", share, math.sqrt(share * (1 - share) / total),
        num_test, num_test, interval=wilson(share, total), expected=0.5, better="nearer",
        error_by="binomial, Wilson's interval, given the trained classifier", seed=seed,
        details={"p_value": p_value, "num_train": num_train}, notes=notes,
    )  # fmt: skip


def _classifier(classifier: Any, n: int) -> tuple[Any, str]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(classifier, str) and classifier == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), "logistic"
    if isinstance(classifier, str):
        # About sqrt(n) neighbours, odd so that votes cannot tie.
        k = 2 * (math.isqrt(n) // 2) + 1
        return make_pipeline(StandardScaler(), KNeighborsClassifier(k)), "knn"
    return classifier, type(classifier).__name__


@checked
def sliced_wasserstein(
    real: Any,
    fake: Any,
    *,
    features: Any = "raw",
    num_projections: TwoOrMore = 200,
    num_groups: TwoOrMore = 20,
    seed: int = 0,
) -> Estimate:
    """Root mean, over random directions, of the squared 2-Wasserstein distance of projections.

    The error joins the delete-group jackknife over data, at fixed directions, and the spread over
    directions. Too large for finite n, also for equal laws.

    Args:
        real, fake: [n, *event] and [m, *event] data; n and m may differ.
        features: of both, see `as_features`: a function or network that is applied to the data, or
            a name ("raw", "pca50", "digit-net"); the result is called by it.
        num_projections: directions, uniform on the sphere.
        num_groups: of the jackknife.
        seed: of directions and groups.

    Raises:
        DataError: fewer than two data a group, not finite. ShapeError: different d.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22-45.
    """
    x, y, name, notes = featured(real, fake, features, "sliced_wasserstein")
    seed = check_seed(seed, "sliced_wasserstein")
    directions = random_directions(x.shape[1], num_projections, seed)
    px, py = x @ directions, y @ directions
    squares = wasserstein_1d(px, py)
    value = math.sqrt(squares.mean())
    by_data = jackknife(
        lambda a, b: np.sqrt(wasserstein_1d(a, b).mean()), px, py,
        num_groups=num_groups, seed=seed + 1, where="sliced_wasserstein",
    )  # fmt: skip
    # In one dimension every direction is the same line.
    spread = float(squares.std(ddof=1)) / math.sqrt(num_projections) if x.shape[1] > 1 else 0.0
    by_directions = spread / (2 * value) if value > 0 else 0.0
    return Estimate(
        f"SW2[{name}]", value, math.hypot(float(by_data), by_directions), len(x), len(y),
        bias="upward", seed=seed,
        error_by=f"delete-group jackknife, {num_groups} groups, and spread of directions",
        details={"num_projections": num_projections, "error_of_directions": by_directions},
        notes=notes,
    )  # fmt: skip


def random_directions(d: int, count: int, seed: int) -> np.ndarray:
    """[d, count] unit vectors, uniform on the sphere."""
    directions = np.random.default_rng(seed).standard_normal((d, count))
    return directions / np.linalg.norm(directions, axis=0)


def wasserstein_1d(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[p] squared 2-Wasserstein distances of the columns of [n, p] and [m, p], exactly.

    The integral over u in (0, 1) of the squared difference of the two quantile functions, which are
    steps at multiples of 1/n and 1/m.
    """
    n, m = len(x), len(y)
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    if n == m:
        return ((x - y) ** 2).mean(0)
    # Whole numbers i m and j n in place of i / n and j / m: equal cuts are then equal.
    cuts = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(m + 1) * n]))
    left, width = cuts[:-1], np.diff(cuts) / (n * m)
    return width @ (x[left // m] - y[left // n]) ** 2


@checked
def memorisation(
    fake: Any,
    train: Any,
    test: Any,
    *,
    features: Any = "raw",
    copy_below: NonNegative = 0.05,
    num_resamples: Resamples = 1000,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """Distances to the nearest training datum, of samples against fresh data of the truth.

    Args:
        fake: [m, *event] samples.
        train: [n, *event] what the model was fitted to.
        test: [l, *event] data of the same law that it never saw.
        features: of all three, as in the other measures; the components of "pca50" are those of
            the training data.
        copy_below: a sample is a copy when its distance is below this share of the fresh data's
            median distance.
        num_resamples: of the bootstrap over samples and fresh data, at fixed training data.
        seed: of the bootstrap.

    Returns:
        (ratio, copies): the ratio of median distances, samples' over fresh data's, 1 for a perfect
        model and far below 1 for one that repeats its training data; the share of copies.

    Raises:
        DataError: the fresh data's median distance is 0 (they are in the training data).
    """
    as_pair(train, test, "memorisation")
    t, f, name, _ = featured(train, fake, features, "memorisation")
    u = as_matrix(features_for(features, train)(test), "memorisation (test)")
    seed = check_seed(seed, "memorisation")
    own, fresh = nearest_distance(f, t), nearest_distance(u, t)
    typical = float(np.median(fresh))
    if typical == 0:
        raise DataError(
            "memorisation: got fresh data of which half equal a training datum, expected data that "
            "the model never saw; take the held-out part of a split."
        )
    rng = np.random.default_rng(seed)
    again = np.array([_ratio(rng.choice(own, len(own)), rng.choice(fresh, len(fresh)))
                      for _ in range(num_resamples)])  # fmt: skip
    low, high = np.quantile(again, [0.025, 0.975])
    ratio = Estimate(
        f"nearest-train ratio[{name}]", float(np.median(own)) / typical,
        float(again.std(ddof=1)), len(u), len(f), interval=(float(low), float(high)),
        expected=1.0, better="nearer", error_by=f"bootstrap, {num_resamples}", seed=seed,
        details={"num_train": len(t), "median_of_fresh": typical},
    )  # fmt: skip
    share = float((own < copy_below * typical).mean())
    copies = Estimate(
        f"share of copies[{name}]", share, math.sqrt(share * (1 - share) / len(own)),
        len(u), len(f), interval=wilson(share, len(own)),
        expected=float((fresh < copy_below * typical).mean()),
        error_by="binomial, Wilson's interval", details={"copy_below": copy_below},
    )  # fmt: skip
    return ratio, copies


def _ratio(own: np.ndarray, fresh: np.ndarray) -> float:
    return float(np.median(own) / np.median(fresh))


def nearest_distance(x: Any, reference: Any) -> np.ndarray:
    """[n] distance from each of `x` [n, d] to the nearest of `reference` [m, d]."""
    from sklearn.neighbors import NearestNeighbors

    a, b = as_matrix(x, "nearest_distance", least=1), as_matrix(reference, "nearest_distance")
    return NearestNeighbors(n_neighbors=1).fit(b).kneighbors(a)[0][:, 0]
