"""Methods by scores in one table: intervals over prompts, paired tests, winners where significant.

With s_mp the mean score of method m's pictures of prompt p, the unit is the prompt: intervals are
Student's of mean_p s_mp, and two methods are compared by the paired t test of s_mp - s_m'p, with
Holm's correction over all pairs and scores of the table. No p-value is below 2^(1-n), that of n
prompts which all went one way, so that equal differences claim no certainty. A method wins a score
only if it beats every other at `alpha` after the correction; with few prompts often none does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from probgen.errors import DataError, NonFiniteError, ShapeError, UnknownName
from probgen.evaluation.detection.intervals import holm
from probgen.evaluation.samples.estimate import Estimate
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare

LEAST = 5  # prompts for an interval that means something


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two methods on one score.

    Attributes:
        score, first, second: names.
        difference: mean over prompts of first - second; low, high: its 95 % interval.
        p_value, p_holm: two-sided; after the correction.
    """

    score: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


@dataclasses.dataclass(frozen=True, repr=False)
class MethodTable:
    """What `compare_methods` gives.

    Attributes:
        cells: estimates by (method, score).
        pairs: every two methods on every score.
        winners: by score, the method that beats every other, or None.
        num_prompts: how many units.
        smaller: scores of which less is better.
    """

    cells: Mapping[tuple[str, str], Estimate]
    pairs: tuple[Paired, ...]
    winners: Mapping[str, str | None]
    num_prompts: int
    smaller: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.cells))

    @property
    def scores(self) -> list[str]:
        return list(dict.fromkeys(score for _, score in self.cells))

    def text(self) -> str:
        """A Markdown table: mean ± half the 95 % interval; a star where a method wins."""
        heads = [f"{s} ({'smaller' if s in self.smaller else 'larger'})" for s in self.scores]
        rows = [[m, *(self._cell(m, s) for s in self.scores)] for m in self.methods]
        lines = [["method", *heads], ["---"] * (1 + len(heads)), *rows]
        said = f"{self.num_prompts} prompts; ± is half of a 95 % interval over them. "
        won = [s for s, m in self.winners.items() if m]
        said += (
            "* beats every other method (paired t tests, Holm)."
            if won
            else "No method beats every other in any score (paired t tests, Holm)."
        )
        return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", said])

    def _cell(self, method: str, score: str) -> str:
        found = self.cells[method, score]
        star = " *" if self.winners[score] == method else ""
        return f"{found.value:.3f} ± {found.high - found.value:.3f}{star}"

    def pair(self, score: str, first: str, second: str) -> Paired:
        """Two methods on a score, first - second.

        Raises:
            UnknownName: no such methods or score.
        """
        for each in self.pairs:
            if each.score == score and {each.first, each.second} == {first, second}:
                if each.first == first:
                    return each
                return dataclasses.replace(
                    each, first=first, second=second, difference=-each.difference,
                    low=-each.high, high=-each.low,
                )  # fmt: skip
        raise UnknownName(
            f"MethodTable.pair: got {score!r} of {first!r} and {second!r}, expected a score among "
            f"{self.scores} and two methods among {self.methods}."
        )

    __repr__ = text


@checked
def compare_methods(
    scores: Mapping[str, Any], prompts: Sequence[Any], *, smaller: Sequence[str] = (),
    alpha: OpenShare = 0.05,
) -> MethodTable:  # fmt: skip
    """A table methods x scores, paired by prompt.

    Args:
        scores: {method: {score: [n]}}, a number a picture, of all methods for the same prompts.
        prompts: [n] the prompt of each picture, alike for all methods.
        smaller: names of scores of which less is better, such as "leak".
        alpha: of the tests, after Holm's correction.

    Raises:
        DataError: no method; fewer than five prompts, over which an interval means little.
        ShapeError: another number of values than of prompts.
        UnknownName: methods with other scores; `smaller` names one that is not there.
        NonFiniteError: scores that are NaN or infinite.
    """
    means, names = _by_prompt(scores, list(prompts))
    if unknown := set(smaller) - set(names):
        raise UnknownName(f"compare_methods: got smaller={sorted(unknown)}, expected of {names}.")
    cells = {(m, s): _estimate(s, v) for m, each in means.items() for s, v in each.items()}
    raw = [(s, a, b, means[a][s] - means[b][s]) for s in names for a, b in combinations(means, 2)]
    pairs = _paired(raw)
    winners = {s: _winner(s, cells, pairs, s in smaller, alpha) for s in names}
    count = len(next(iter(next(iter(means.values())).values())))
    return MethodTable(cells, pairs, winners, count, tuple(smaller))


def _by_prompt(
    scores: Mapping[str, Any], prompts: list
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    if not scores:
        raise DataError("compare_methods: got no method, expected {method: {score: [n]}}.")
    units = list(dict.fromkeys(prompts))
    if len(units) < LEAST:
        raise DataError(
            f"compare_methods: got {len(units)} different prompts, expected at least {LEAST}, "
            "over which intervals and tests are taken; ask for more scenes."
        )
    groups = np.array([units.index(p) for p in prompts])
    names = list(next(iter(scores.values())))
    found: dict[str, dict[str, np.ndarray]] = {}
    for method, each in scores.items():
        if list(each) != names:
            raise UnknownName(
                f"compare_methods: got {method!r} with the scores {list(each)}, expected {names} "
                "as of the first method."
            )
        found[method] = {}
        for name, values in each.items():
            v = np.asarray(values, float)
            if v.shape != (len(prompts),):
                raise ShapeError(
                    f"compare_methods: got {name!r} of {method!r} of shape {list(v.shape)} for "
                    f"{len(prompts)} pictures, expected one number a picture."
                )
            if not np.isfinite(v).all():
                raise NonFiniteError(
                    f"compare_methods: got NaN or infinity in {name!r} of {method!r}, expected "
                    "finite numbers; look at the pictures that gave them."
                )
            found[method][name] = np.array([v[groups == i].mean() for i in range(len(units))])
    return found, names


def _estimate(name: str, values: np.ndarray) -> Estimate:
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    mean = float(values.mean())
    return Estimate(
        name, mean, error, 0, n, (mean - half, mean + half), error_by="Student's, over prompts"
    )


def _paired(raw: list) -> tuple[Paired, ...]:
    if not raw:
        return ()
    rows = []
    for score, first, second, gap in raw:
        n, mean = len(gap), float(gap.mean())
        error = float(gap.std(ddof=1) / np.sqrt(n))
        half = float(stats.t.ppf(0.975, n - 1)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
        p = max(p, 0.5 ** (n - 1))
        rows.append((score, first, second, mean, mean - half, mean + half, p))
    adjusted = holm(np.array([row[-1] for row in rows]))
    return tuple(Paired(*row, float(p)) for row, p in zip(rows, adjusted, strict=True))


def _winner(
    score: str, cells: Mapping, pairs: tuple[Paired, ...], is_smaller: bool, alpha: float
) -> str | None:
    values = {m: e.value for (m, s), e in cells.items() if s == score}
    best = (min if is_smaller else max)(values, key=lambda m: values[m])
    own = [p for p in pairs if p.score == score and best in (p.first, p.second)]
    return best if own and all(p.p_holm <= alpha for p in own) else None
