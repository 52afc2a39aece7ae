"""What an evaluation page is made from: a table of measures for each data set, and their labels.

`GatheredTables` checks that the tables belong together; scores leave it turned so that larger is
stranger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError, ShapeError, UnknownName
from probgen.evaluation.detection import DetectionTable, compare
from probgen.evaluation.detection.evaluations import check_tables
from probgen.evaluation.detection.scores import count_distinct
from probgen.language.declared import checked
from probgen.language.kinds import Count, OpenShare, Text
from probgen.records.evaluation import Evaluation

# How a measure is called on a page, by how its name begins; what is not here keeps its own name.
CALLED = {
    "NegativeLogLikelihood": "−log p",
    "LikelihoodRegret": "regret",
    "LikelihoodRatio": "ratio",
    "InputComplexity": "complexity",
    "ReconstructionError": "reconstruction",
    "KLTerm": "KL",
    "GradientNorm": "gradient norm",
    "BiasCorrected": "bias-corrected",
}


@dataclasses.dataclass(frozen=True)
class GatheredTables:
    """Tables of the same measures, the in-distribution one first.

    Attributes:
        name: of the in-distribution data.
        tables: {data set: its table}; the first is the model's own data.
        labels: {measure: how the page calls it}.
        images: {data set: [n, h, w, 1 or 3] in [0, 1], one a datum of its table}; may lack sets.
        detection: how well measures tell the other sets apart; None where there are none.
        num_distinct: {data set: how many of its data differ}; of a set left out all do.
        train: the table of training data, where there is one: no set to tell apart.
    """

    name: str
    tables: Mapping[str, Evaluation]
    labels: Mapping[str, str]
    images: Mapping[str, np.ndarray]
    detection: DetectionTable | None
    num_distinct: Mapping[str, int] = dataclasses.field(default_factory=dict)
    train: Evaluation | None = None

    @property
    def own(self) -> Evaluation:
        """The table of the in-distribution data."""
        return self.tables[self.name]

    @property
    def others(self) -> dict[str, Evaluation]:
        """The tables of the other sets."""
        return {k: t for k, t in self.tables.items() if k != self.name}

    def ordinary(self) -> dict[tuple[str, str], float]:
        """{(label of a measure, other set): the share of the set that it ranks more ordinary than
        the median datum of the model's own}; an exact tie counts half."""
        out = {}
        for measure in self.measures:
            middle = np.median(self.own.strangeness(measure))
            for data_set, table in self.others.items():
                x = table.strangeness(measure)
                share = np.mean(x < middle) + 0.5 * np.mean(x == middle)
                out[self.labels[measure], data_set] = float(share)
        return out

    @property
    def measures(self) -> list[str]:
        return self.own.names

    def distinct(self, data_set: str) -> int:
        """How many data of a set differ from each other."""
        return self.num_distinct.get(data_set, self.tables[data_set].num_data)

    @property
    def all_distinct(self) -> tuple[int, dict[str, int]]:
        """(in, {data set: out}): how many data differ, for `compare`."""
        return self.distinct(self.name), {each: self.distinct(each) for each in self.others}

    @property
    def likelihoods(self) -> list[str]:
        """The measures that are an estimate or a bound of log p(x), or of minus it."""
        ways = self.own.larger_is_stranger
        return [m for m in self.measures if not ways[m] or m.startswith("NegativeLogLikelihood")]

    def scores(self, measures: Sequence[str] | None = None) -> dict[str, tuple[Any, dict]]:
        """{label: (scores of the own data, {set: scores})}, larger = stranger, for `compare`."""
        return {
            self.labels[m]: (
                self.own.strangeness(m),
                {k: t.strangeness(m) for k, t in self.others.items()},
            )
            for m in (self.measures if measures is None else measures)
        }


@checked
def gather(
    in_table: Evaluation,
    out_tables: Mapping[str, Evaluation] | None = None,
    *,
    name: Text = "the model's own data",
    images: Mapping[str, Any] | None = None,
    labels: Mapping[str, Text] | None = None,
    num_distinct: Mapping[str, Count] | None = None,
    train_table: Evaluation | None = None,
    level: OpenShare = 0.95,
    seed: int = 0,
    progress_bar: bool = True,
) -> GatheredTables:
    """Checks the parts and computes the detection table.

    Raises:
        DataError: two sets of one name, a NaN estimate, pictures that are not one a datum or not in
            [0, 1]; see also `compare`.
        AlgorithmError: tables with other measures than the first; more distinct data than data.
        ShapeError: pictures that are not [n, h, w, 1 or 3].
        UnknownName: pictures or distinct data of a set, or labels of a measure, that is not there.
    """
    others = dict(out_tables or {})
    if name in others:
        raise DataError(
            f"report: got another set called {name!r}, as the model's own data are, expected a "
            "name for each; rename one."
        )
    tables = {name: in_table, **others}
    told = {**tables, "the training data": train_table} if train_table is not None else tables
    check_tables("report", told)
    for each, table in told.items():
        _check_estimates(each, table)
    called = _labels(in_table.names, labels or {})
    pictures = {each: np.asarray(given) for each, given in (images or {}).items()}
    for each, given in pictures.items():
        _check_images(each, given, tables)
    distinct = {each: count_distinct(given) for each, given in pictures.items()}
    distinct |= num_distinct or {}
    for each, count in distinct.items():
        _check_distinct(each, count, tables)
    bare = GatheredTables(name, tables, called, pictures, None, distinct, train_table)
    if not others:
        return bare
    found = compare(
        bare.scores(), level=level, seed=seed, show_progress=progress_bar,
        num_distinct=bare.all_distinct,
    )  # fmt: skip
    return dataclasses.replace(bare, detection=found)


def _check_estimates(name: str, table: Evaluation) -> None:
    for measure in table.names:
        is_nan = np.isnan(np.asarray(table[measure]["estimate"].values, np.float64))
        if is_nan.any():
            raise DataError(
                f"report: got NaN for {int(is_nan.sum())} of {len(is_nan)} data of {name!r} by "
                f"{measure} (index {int(np.flatnonzero(is_nan)[0])} first), expected a number for "
                "every datum; look at those data, and leave them out of every measure alike "
                "(`table.select`) if they cannot be scored."
            )


def _check_distinct(name: str, count: int, tables: Mapping[str, Evaluation]) -> None:
    if name not in tables:
        raise UnknownName(
            f"report: got num_distinct of {name!r}, expected sets among {list(tables)}; use their "
            "names."
        )
    size = tables[name].num_data
    if count > size:
        raise AlgorithmError(
            f"report: got num_distinct {count!r} of {name!r}, expected a whole number from 1 to "
            f"{size}; count the data of that set that differ from each other."
        )


def _labels(measures: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """{measure: a short name}, the full name where the short one would not be its own."""
    for name in given:
        if name not in measures:
            raise UnknownName(
                f"report: got a label for {name!r}, expected names among {list(measures)}."
            )
    heads = [CALLED.get(m.split("(")[0], m.split("(")[0]) for m in measures]
    short = [h if heads.count(h) == 1 else m for h, m in zip(heads, measures, strict=True)]
    called = {m: given.get(m, s) for m, s in zip(measures, short, strict=True)}
    twice = sorted({v for v in called.values() if list(called.values()).count(v) > 1})
    if twice:
        raise DataError(
            f"report: got two measures labelled {twice[0]!r}, expected a label for each."
        )
    return called


def _check_images(name: str, pictures: np.ndarray, tables: Mapping[str, Evaluation]) -> None:
    shape = pictures.shape
    if name not in tables:
        raise UnknownName(
            f"report: got pictures of {name!r}, expected sets among {list(tables)}; use their "
            "names."
        )
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ShapeError(
            f"report: got pictures of shape {shape} for {name!r}, expected [n, height, width, 1 "
            "or 3] in [0, 1]; leave them out for data that are no pictures."
        )
    if shape[0] != tables[name].num_data:
        raise DataError(
            f"report: got {shape[0]} pictures of {name!r}, expected {tables[name].num_data}, one "
            "for each datum of its table, in the same order; leave none out."
        )
    if pictures.dtype.kind not in "buif":
        raise DataError(
            f"report: got pictures of dtype {pictures.dtype} for {name!r}, expected numbers in "
            "[0, 1]; convert them with numpy.asarray(images, float)."
        )
    low, high = float(pictures.min()), float(pictures.max())
    if not (low >= 0 and high <= 1):
        got = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
        do = "divide bytes by 255" if high <= 255 else "scale them"
        raise DataError(
            f"report: got {got} in the pictures of {name!r}, expected [0, 1]; "
            + ("look at those pictures." if got == "NaN" else f"{do} first.")
        )
