"""`sample_quality`: every judge of samples on one pair of sets, in one record.

    print(sample_quality(real, fake, features=pca_features(train, 50), seed=0))

Each row has an error, an interval, its n, and the value that equal laws would give at this n where
that is known; where it is not (precision, recall, SW2) the two sets are pooled and dealt anew a few
times, and the mean of the same measure between the parts stands in that column.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, UnknownName
from probgen.evaluation.samples import modes as mode_counting
from probgen.evaluation.samples.estimate import Estimate, plain, table
from probgen.evaluation.samples.features import as_features, featured, features_for
from probgen.evaluation.samples.frechet import frechet_distance
from probgen.evaluation.samples.kid import kid
from probgen.evaluation.samples.mmd import mmd_test
from probgen.evaluation.samples.prdc import measures, prdc
from probgen.evaluation.samples.two_sample import (
    c2st,
    memorisation,
    random_directions,
    sliced_wasserstein,
    wasserstein_1d,
)
from probgen.language.declared import checked
from probgen.language.dist import did_you_mean
from probgen.language.kinds import Many, Positive, TwoOrMore
from probgen.language.seeds import check_seed
from probgen.progress import bar


@dataclasses.dataclass(frozen=True, eq=False)
class SampleQuality:
    """What `sample_quality` returns: `quality["KID"].value`, `print(quality)`.

    Attributes:
        estimates: one record a measure, in the order of the table.
        features: name of the features.
        n_real, n_fake: sizes of the sets.
        modes: the mode count, or None where neither centres nor a classifier were given.
        seed: of all random choices.
        seconds: wall time of each part by name.
    """

    estimates: tuple[Estimate, ...]
    features: str
    n_real: int
    n_fake: int
    modes: mode_counting.ModeCount | None
    seed: int
    seconds: Mapping[str, float]

    def __getitem__(self, name: str) -> Estimate:
        """The measure of that name; "KID" stands for "KID[pca50]"."""
        for each in self.estimates:
            if name in (each.name, each.name.partition("[")[0]):
                return each
        names = [each.name for each in self.estimates]
        raise UnknownName(
            f"sample quality: no measure {name!r}, expected one of {names}"
            f"{did_you_mean(name, names)}."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """All warnings, each with the measures that it belongs to."""
        of: dict[str, list[str]] = {}
        for each in self.estimates:
            for note in each.notes:
                of.setdefault(note, []).append(each.name)
        return tuple(f"{', '.join(names)}: {note}" for note, names in of.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, text, lists and dicts, ready for JSON."""
        return plain(
            {
                "features": self.features, "n_real": self.n_real, "n_fake": self.n_fake,
                "seed": self.seed, "seconds": self.seconds,
                "estimates": [each.to_dict() for each in self.estimates],
                "modes": self.modes.to_dict() if self.modes else None,
            }
        )  # fmt: skip

    def to_pandas(self) -> Any:
        """A data frame, one row a measure."""
        import pandas

        fields = (
            "name", "value", "standard_error", "low", "high", "expected", "better", "bias",
            "n_real", "n_fake", "error_by",
        )  # fmt: skip
        rows = [{name: getattr(each, name) for name in fields} for each in self.estimates]
        frame = pandas.DataFrame(rows).set_index("name")
        frame["p_value"] = [each.details.get("p_value", np.nan) for each in self.estimates]
        return frame

    def __repr__(self) -> str:
        head = f"sample quality in {self.features!r}, seed {self.seed}"
        tests = [
            f"{each.name}: p = {each.details['p_value']:.2g}"
            for each in self.estimates
            if "p_value" in each.details
        ]
        lines = [head, table(self.estimates)]
        lines += [f"tests of equal laws: {'; '.join(tests)}"] if tests else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@checked
def sample_quality(
    real: Any,
    fake: Any,
    *,
    seed: int,
    features: Any = "raw",
    train: Any = None,
    classifier: Any = None,
    centres: Any = None,
    sd: Positive | mode_counting.Scales | None = None,
    truth: Any = None,
    k: Many = 5,
    num_groups: TwoOrMore = 20,
    num_permutations: Many = 999,
    num_dealings: Many = 5,
    allow_unequal: bool = False,
    progress_bar: bool = True,
) -> SampleQuality:
    """All measures that these inputs allow, of samples against data.

    Args:
        real, fake: [n, *event] data that the model never saw, and as many samples of it.
        seed: of all random choices.
        features: applied to all sets, see `as_features`: a function, a network, a `Features`, or a
            name ("raw", "pca50", "digit-net").
        train: the model's training data; with it, `memorisation` is measured.
        classifier: as in `count_classes`; with it, the samples' classes are counted.
        centres, sd: as in `count_modes`; with both, the modes are counted (in the data's space).
        truth: shares of classes or modes; None is uniform.
        k: neighbours, of `prdc`.
        num_groups: of the jackknives.
        num_permutations: of the MMD test.
        num_dealings: of the pooled data, for the column "if equal".
        allow_unequal: compare sets of different sizes.
        progress_bar: on a terminal.

    Raises:
        AlgorithmError: sets of different sizes without `allow_unequal`; centres without sd; both
            centres and a classifier. ShapeError, DataError: as the measures.
    """
    seed = check_seed(seed, "sample_quality")
    if (centres is None) != (sd is None) or (centres is not None and classifier is not None):
        raise AlgorithmError(
            "sample_quality: got centres without sd, or the reverse, or centres and a classifier, "
            "expected centres= and sd= together, or classifier= alone."
        )
    x, y, name, _ = featured(real, fake, features, "sample_quality")
    if len(x) != len(y) and not allow_unequal:
        raise AlgorithmError(
            f"sample_quality: got {len(x)} real and {len(y)} fake data, expected as many of each, "
            "since most measures depend on N; take equally many, or pass allow_unequal=True."
        )
    held, groups = as_features(None, name=name), {"num_groups": num_groups, "seed": seed}
    found: list[Estimate] = []
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("frechet", lambda: frechet_distance(
            x, y, features=held, allow_unequal=allow_unequal, **groups)),
        ("kid", lambda: [kid(x, y, features=held, seed=seed)]),
        ("prdc", lambda: _with_dealt_prdc(
            prdc(x, y, features=held, k=k, **groups), x, y, k, num_dealings, seed)),
        ("mmd", lambda: [mmd_test(
            x, y, features=held, num_permutations=num_permutations, seed=seed)]),
        ("sliced", lambda: [_with_dealt_sw(
            sliced_wasserstein(x, y, features=held, **groups), x, y, num_dealings, seed)]),
        ("c2st", lambda: [c2st(x, y, features=held, classifier=each, seed=seed)
                          for each in ("logistic", "knn")]),
    ]  # fmt: skip
    if train is not None:
        parts.append(("memorisation", lambda: memorisation(
            y, features_for(features, real)(train), x, features=held, seed=seed)))  # fmt: skip
    counted = None
    seconds: dict[str, float] = {}
    with bar(len(parts) + 1, wanted=progress_bar, unit="measure") as shown:
        for title, run in parts:
            start = time.perf_counter()
            found += run()
            seconds[title] = time.perf_counter() - start
            shown(1)
        start = time.perf_counter()
        if classifier is not None:
            counted = mode_counting.count_classes(fake, classifier, truth=truth, real=real)
        elif sd is not None:
            counted = mode_counting.count_modes(fake, centres, sd=sd, truth=truth)
        if counted is not None:
            found += counted.estimates
            seconds["modes"] = time.perf_counter() - start
        shown(1)
    return SampleQuality(tuple(found), name, len(x), len(y), counted, seed, seconds)


def _dealings(x: np.ndarray, y: np.ndarray, count: int, seed: int) -> list[tuple]:
    """Pooled data in two random parts of the sets' sizes, `count` times."""
    rng, pooled = np.random.default_rng([seed, 1]), np.concatenate([x, y])
    mixed = [rng.permutation(pooled) for _ in range(count)]
    return [(each[: len(x)], each[len(x) :]) for each in mixed]


def _with_dealt_prdc(
    estimates: tuple[Estimate, ...], x: np.ndarray, y: np.ndarray, k: int, count: int, seed: int
) -> list[Estimate]:
    """Precision and recall with their mean over dealings of the pooled data."""
    dealt = np.mean([measures(a, b, k)[0] for a, b in _dealings(x, y, count, seed)], axis=0)
    return [
        dataclasses.replace(each, expected=float(dealt[i])) if each.expected is None else each
        for i, each in enumerate(estimates)
    ]


def _with_dealt_sw(
    estimate: Estimate, x: np.ndarray, y: np.ndarray, count: int, seed: int
) -> Estimate:
    directions = random_directions(x.shape[1], estimate.details["num_projections"], seed)
    values = [
        np.sqrt(wasserstein_1d(a @ directions, b @ directions).mean())
        for a, b in _dealings(x, y, count, seed)
    ]
    return dataclasses.replace(estimate, expected=float(np.mean(values)))
