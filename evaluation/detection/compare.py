"""Several measures on several data sets: who tells them apart, and whether that is more than luck.

For each data set every two measures are compared by DeLong's paired test; Holm's correction is over
all comparisons of the table. Each AUROC is also tested against 1/2, one-sided each way, with Holm's
correction over all AUROCs and both ways. A measure is marked the winner of a data set only if it
beats every other there, and chance, at `alpha` after the corrections. So the chance that a table of
equally good measures names any winner is at most `alpha`, and so is the chance that a table of pure
noise calls any measure better, or worse, than a coin.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from probgen import progress
from probgen.errors import AlgorithmError, DataError, UnknownName
from probgen.evaluation.detection.delong import DeLong, chance_test, delong, delong_test
from probgen.evaluation.detection.evaluations import scores_of
from probgen.evaluation.detection.intervals import Estimate, holm
from probgen.evaluation.detection.records import Detection, detect
from probgen.evaluation.detection.scores import (
    Scores,
    as_scores,
    check_distinct,
    demand_pairs,
)
from probgen.evaluation.detection.tables import ChanceTest, Comparison, DetectionTable, Verdict
from probgen.language.declared import checked
from probgen.language.kinds import Count, CountOrZero, OpenShare, Resamples
from probgen.records.evaluation import Evaluation

Measures = Mapping[str, Any]  # {measure: (in_scores, {data set: out_scores})}
Ways = bool | Mapping[str, bool]
Distinct = tuple[Count | None, Mapping[str, CountOrZero]]


@checked
def compare(
    measures: Measures | Evaluation,
    out_tables: Mapping[str, Evaluation] | None = None,
    *,
    larger_is_stranger: Ways = True,
    num_distinct: Distinct | None = None,
    tpr: OpenShare = 0.95,
    level: OpenShare = 0.95,
    alpha: OpenShare = 0.05,
    num_resamples: Resamples = 2000,
    seed: int = 0,
    show_progress: bool = True,
) -> DetectionTable:
    """A table measures x data sets, with intervals, and winners only where they are significant.

    `compare(table, {"letters": letters_table})` takes what `pg.evaluate` gave, directions and all;
    `compare({"regret": (in_scores, {"letters": out_scores})})` takes any scores. Nothing is claimed
    of a set where it, or the in-distribution data, are fewer than 10.

    Args:
        measures: the table of data like the training data, held out from it; or {measure:
            (in_scores [n], {data set: out_scores [m]})}, every measure scoring the same data in the
            same order, since the tests are paired.
        out_tables: {data set: its table}, by the same measures; only after a table.
        larger_is_stranger: for all measures, or {measure: bool}; a measure left out of the mapping
            counts as True. Tables know it themselves.
        num_distinct: (in, {data set: out}), how many of the data differ from each other where some
            are copies; intervals and tests then count these. None, or a set left out: all differ.
        tpr: the true positive rate at which false positive rates are read.
        level: of the intervals.
        alpha: of the tests, after Holm's correction.
        num_resamples: of the bootstrap behind FPR.

    Raises:
        ShapeError: measures whose sets have other lengths.
        DataError: no measure or no data set; scores that `as_scores` refuses or that are all equal.
        AlgorithmError: measures with other data sets.
        DeclarationError: an option outside its range.
        UnknownName: `larger_is_stranger` names a measure, `num_distinct` a set, that is not there.
    """
    if isinstance(measures, Evaluation):
        if larger_is_stranger is not True:
            raise AlgorithmError(
                f"larger_is_stranger: got {larger_is_stranger!r} beside an Evaluation, expected "
                "nothing, since a table knows the direction of its measures; leave it out."
            )
        measures = scores_of(measures, out_tables)
    elif out_tables is not None:
        raise AlgorithmError(
            f"compare: got {type(measures).__name__} and a second argument, expected an Evaluation "
            "before {data set: Evaluation}; pass the table of the model's own data first."
        )
    scores = checked_measures(measures, larger_is_stranger, num_distinct)
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
    placed = {k: delong(s.inside, s.outside, distinct=s.distinct) for k, s in scores.items()}
    comparisons = _comparisons(placed, tuple(measures), data_sets, level)
    chance = _chance(placed)
    above = {(t.measure, t.data_set) for t in chance if t.p_above_holm <= alpha}
    verdicts = tuple(
        _verdict({m: cells[m, each] for m in measures}, comparisons, each, alpha, above)
        for each in data_sets
    )
    return DetectionTable(tuple(cells.values()), comparisons, verdicts, alpha, chance)


def checked_measures(
    measures: Measures,
    larger_is_stranger: Ways = True,
    num_distinct: Distinct | None = None,
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
                f"{measure}: got {type(pair).__name__}, expected a pair (in_scores, {{data set: "
                f"out_scores}}); pass {{{measure!r}: (in_scores, {{'letters': out_scores}})}}."
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
            each = _with_distinct(each, num_distinct, data_set, names)
            other = found.get((first_name, data_set), each)
            sizes = [(len(s.inside), len(s.outside)) for s in (other, each)]
            demand_pairs(sizes[0], sizes[1], (other.name, each.name))
            found[measure, data_set] = each
    return found


def _with_distinct(
    scores: Scores, num_distinct: Distinct | None, data_set: str, names: list[str]
) -> Scores:
    if num_distinct is None:
        return scores
    in_count, out_counts = num_distinct
    for name in out_counts:
        if name not in names:
            raise UnknownName(
                f"num_distinct: got the set {name!r}, expected names among {names}; use one of "
                "these."
            )
    sizes = len(scores.inside), len(scores.outside)
    distinct = (sizes[0] if in_count is None else in_count, out_counts.get(data_set, sizes[1]))
    check_distinct(distinct, sizes)
    return scores._replace(distinct=distinct)


def _ways(measures: Measures, larger_is_stranger: Ways) -> dict[str, bool]:
    if not measures:
        raise DataError(
            "measures: got none, expected at least one; pass {'regret': (in_scores, {'letters': "
            "out_scores})}."
        )
    if not isinstance(larger_is_stranger, Mapping):
        return dict.fromkeys(measures, larger_is_stranger)
    for name in larger_is_stranger:
        if name not in measures:
            raise UnknownName(
                f"larger_is_stranger: got measure {name!r}, expected names among {list(measures)}."
            )
    return {name: larger_is_stranger.get(name, True) for name in measures}


def _chance(placed: dict[tuple[str, str], DeLong]) -> tuple[ChanceTest, ...]:
    """Every AUROC against 1/2, with p-values corrected over all of them and both directions."""
    raw = [[float(p) for p in chance_test(each)] for each in placed.values()]
    # Doubled for the two directions; Holm's step-down is over the AUROCs of one direction.
    above, below = (holm(np.minimum(2.0 * column, 1.0)) for column in np.array(raw).T)
    return tuple(
        ChanceTest(*name, p[0], float(above[i]), p[1], float(below[i]))
        for i, (name, p) in enumerate(zip(placed, raw, strict=True))
    )


def _comparisons(
    placed: dict[tuple[str, str], DeLong],
    measures: tuple[str, ...],
    data_sets: tuple[str, ...],
    level: float,
) -> tuple[Comparison, ...]:
    """Every two measures on every data set, with p-values corrected over all of them."""
    found = []
    for data_set in data_sets:
        for first, second in combinations(measures, 2):
            test = delong_test(placed[first, data_set], placed[second, data_set], level=level)
            limits = Estimate(float(test.difference), float(test.lower), float(test.upper))
            found.append((data_set, first, second, limits, float(test.p_value)))
    adjusted = holm(np.array([each[-1] for each in found]))
    return tuple(Comparison(*each, float(p)) for each, p in zip(found, adjusted, strict=True))


def _verdict(
    cells: dict[str, Detection],
    comparisons: tuple[Comparison, ...],
    data_set: str,
    alpha: float,
    above: set[tuple[str, str]],
) -> Verdict:
    best = max(cells, key=lambda each: cells[each].auroc.value)
    if any(each.is_small for each in cells.values()):
        return Verdict(data_set, best, None, (), False)
    worse = set()
    for each in comparisons:
        if each.data_set == data_set and best in (each.first, each.second):
            other = each.second if each.first == best else each.first
            if each.p_holm <= alpha:
                worse.add(other)
    tied = tuple(each for each in cells if each not in worse)
    beats_chance = any((each, data_set) in above for each in cells)
    if tied == (best,) and (best, data_set) in above and len(cells) > 1:
        return Verdict(data_set, best, best, (), True)
    return Verdict(data_set, best, None, tied, beats_chance)
