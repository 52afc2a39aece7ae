"""Several measures on several data sets: who tells them apart, and whether that is more than luck.

For each data set every two measures are compared by DeLong's paired test; Holm's correction is over
all comparisons of the table. A measure is marked the winner of a data set only if it beats every
other there at `alpha` after the correction, and its AUROC's interval lies above 1/2. So the chance
that a table of equally good measures names any winner is at most `alpha`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from probgen import progress
from probgen.errors import AlgorithmError, DataError, UnknownName
from probgen.evaluation.detection.delong import delong, delong_test
from probgen.evaluation.detection.intervals import Estimate, holm
from probgen.evaluation.detection.records import Detection, detect
from probgen.evaluation.detection.scores import Scores, as_scores, check_share, demand_pairs
from probgen.evaluation.detection.tables import Comparison, DetectionTable, Verdict

Measures = Mapping[str, tuple[Any, Mapping[str, Any]]]


def compare(
    measures: Measures,
    *,
    larger_is_stranger: bool | Mapping[str, bool] = True,
    tpr: float = 0.95,
    level: float = 0.95,
    alpha: float = 0.05,
    num_resamples: int = 2000,
    seed: int = 0,
    show_progress: bool = True,
) -> DetectionTable:
    """A table measures x data sets, with intervals, and winners only where they are significant.

    Args:
        measures: {measure: (in_scores [n], {data set: out_scores [m]})}; every measure scores the
            same data in the same order, since the tests are paired.
        larger_is_stranger: for all measures, or {measure: bool}; a measure left out of the mapping
            counts as True.
        tpr: the true positive rate at which false positive rates are read.
        level: of the intervals.
        alpha: of the tests, after Holm's correction.
        num_resamples: of the bootstrap behind AUPR and FPR.

    Raises:
        ShapeError: measures whose sets have other lengths.
        DataError: no measure or no data set; scores that `as_scores` refuses or that are all equal.
        AlgorithmError: measures with other data sets, or an option outside its range.
        UnknownName: `larger_is_stranger` names a measure that is not there.
    """
    check_share(alpha, "alpha")
    scores = checked_measures(measures, larger_is_stranger)
    cells: dict[tuple[str, str], Detection] = {}
    with progress.bar(len(scores), wanted=show_progress, unit="cell") as move:
        for (measure, data_set), each in scores.items():
            cells[measure, data_set] = detect(
                each,
                measure,
                data_set,
                tpr=tpr,
                level=level,
                num_resamples=num_resamples,
                seed=seed,
            )
            move(1)
    data_sets = tuple(dict.fromkeys(data_set for _, data_set in scores))
    comparisons = _comparisons(scores, tuple(measures), data_sets, level)
    verdicts = tuple(
        _verdict({m: cells[m, each] for m in measures}, comparisons, each, alpha)
        for each in data_sets
    )
    return DetectionTable(tuple(cells.values()), comparisons, verdicts, alpha)


def checked_measures(
    measures: Measures, larger_is_stranger: bool | Mapping[str, bool] = True
) -> dict[tuple[str, str], Scores]:
    """Scores under (measure, data set), larger = stranger, the same data for every measure.

    Raises: as `compare`.
    """
    ways = _ways(measures, larger_is_stranger)
    found: dict[tuple[str, str], Scores] = {}
    first_name = ""
    names: list[str] = []
    for measure, pair in measures.items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Mapping)):
            raise DataError(
                f"{measure}: got {type(pair).__name__}, expected a pair (in_scores, "
                "{data set: out_scores})."
            )
        inside, outside = pair
        if not names:
            first_name, names = measure, list(outside)
        if not names or set(outside) != set(names):
            raise (AlgorithmError if names else DataError)(
                f"{measure}: got data sets {list(outside)}, expected "
                + (f"{names} as for {first_name}" if names else "at least one")
                + "; score every measure on the same data sets."
            )
        for data_set in names:
            each = as_scores(
                inside, outside[data_set], larger_is_stranger=ways[measure],
                name=f"{measure} on {data_set}",
            )  # fmt: skip
            other = found.get((first_name, data_set), each)
            sizes = [(len(s.inside), len(s.outside)) for s in (other, each)]
            demand_pairs(sizes[0], sizes[1], (other.name, each.name))
            found[measure, data_set] = each
    return found


def _ways(measures: Measures, larger_is_stranger: bool | Mapping[str, bool]) -> dict[str, bool]:
    if not measures:
        raise DataError(
            "measures: got none, expected at least one; pass {'regret': (in_scores, {'letters': "
            "out_scores})}."
        )
    if not isinstance(larger_is_stranger, Mapping):
        return dict.fromkeys(measures, bool(larger_is_stranger))
    for name in larger_is_stranger:
        if name not in measures:
            raise UnknownName(
                f"larger_is_stranger: got measure {name!r}, expected names among {list(measures)}."
            )
    return {name: bool(larger_is_stranger.get(name, True)) for name in measures}


def _comparisons(
    scores: dict[tuple[str, str], Scores],
    measures: tuple[str, ...],
    data_sets: tuple[str, ...],
    level: float,
) -> tuple[Comparison, ...]:
    """Every two measures on every data set, with p-values corrected over all of them."""
    found = []
    for data_set in data_sets:
        placed = {m: delong(scores[m, data_set].inside, scores[m, data_set].outside)
                  for m in measures}  # fmt: skip
        for first, second in combinations(measures, 2):
            test = delong_test(placed[first], placed[second], level=level)
            limits = Estimate(float(test.difference), float(test.lower), float(test.upper))
            found.append((data_set, first, second, limits, float(test.p_value)))
    adjusted = holm(np.array([each[-1] for each in found]))
    return tuple(Comparison(*each, float(p)) for each, p in zip(found, adjusted, strict=True))


def _verdict(
    cells: dict[str, Detection], comparisons: tuple[Comparison, ...], data_set: str, alpha: float
) -> Verdict:
    best = max(cells, key=lambda each: cells[each].auroc.value)
    worse = set()
    for each in comparisons:
        if each.data_set == data_set and best in (each.first, each.second):
            other = each.second if each.first == best else each.first
            if each.p_holm <= alpha:
                worse.add(other)
    tied = tuple(each for each in cells if each not in worse)
    beats_chance = cells[best].auroc.lower > 0.5
    if tied == (best,) and beats_chance and len(cells) > 1:
        return Verdict(data_set, best, best, (), True)
    return Verdict(data_set, best, None, tied, beats_chance)
