"""What an evaluation page is made from: a table of measures for each data set, and their labels.

`Material` checks that the tables belong together; scores leave it turned so that larger = stranger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError, ShapeError, UnknownName
from probgen.evaluation.detection import DetectionTable, compare
from probgen.evaluation_table import Evaluation

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
class Material:
    """Tables of the same measures, the in-distribution one first.

    Attributes:
        name: of the in-distribution data.
        tables: {data set: its table}; the first is the model's own data.
        labels: {measure: how the page calls it}.
        images: {data set: [n, h, w, 1 or 3] in [0, 1], one a datum of its table}; may lack sets.
        detection: how well measures tell the other sets apart; None where there are none.
    """

    name: str
    tables: Mapping[str, Evaluation]
    labels: Mapping[str, str]
    images: Mapping[str, np.ndarray]
    detection: DetectionTable | None

    @property
    def own(self) -> Evaluation:
        """The table of the in-distribution data."""
        return self.tables[self.name]

    @property
    def others(self) -> dict[str, Evaluation]:
        """The tables of the other sets."""
        return {k: t for k, t in self.tables.items() if k != self.name}

    @property
    def measures(self) -> list[str]:
        return self.own.names

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


def gather(
    in_table: Evaluation,
    out_tables: Mapping[str, Evaluation] | None = None,
    *,
    name: str = "the model's own data",
    images: Mapping[str, np.ndarray] | None = None,
    labels: Mapping[str, str] | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress_bar: bool = True,
) -> Material:
    """Checks the parts and computes the detection table.

    Raises:
        DataError: two sets of one name, pictures that are not one a datum; see also `compare`.
        AlgorithmError: tables with other measures than the first.
        ShapeError: pictures that are not [n, h, w, 1 or 3].
        UnknownName: pictures of a set, or labels of a measure, that is not there.
    """
    others = dict(out_tables or {})
    if name in others:
        raise DataError(
            f"report: got another set called {name!r}, as the model's own data are, expected a "
            "name for each; rename one."
        )
    tables = {name: in_table, **others}
    for each, table in tables.items():
        if not isinstance(table, Evaluation):
            raise AlgorithmError(
                f"report: got {type(table).__name__} for {each!r}, expected an Evaluation, as "
                "pg.evaluate gives it."
            )
        if set(table.names) != set(in_table.names):
            raise AlgorithmError(
                f"report: got the measures {table.names} of {each!r}, expected {in_table.names} "
                f"as of {name!r}; evaluate every set with the same measures."
            )
    called = _labels(in_table.names, labels or {})
    for each, pictures in (images or {}).items():
        _check_images(each, np.shape(pictures), tables)
    bare = Material(name, tables, called, dict(images or {}), None)
    if not others:
        return bare
    found = compare(bare.scores(), level=level, seed=seed, show_progress=progress_bar)
    return dataclasses.replace(bare, detection=found)


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


def _check_images(name: str, shape: tuple[int, ...], tables: Mapping[str, Evaluation]) -> None:
    if name not in tables:
        raise UnknownName(f"report: got pictures of {name!r}, expected sets among {list(tables)}.")
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ShapeError(
            f"report: got pictures of shape {shape} for {name!r}, expected [n, height, width, 1 "
            "or 3] in [0, 1]; leave them out for data that are no pictures."
        )
    if shape[0] != tables[name].num_data:
        raise DataError(
            f"report: got {shape[0]} pictures of {name!r}, expected {tables[name].num_data}, one "
            "for each datum of its table, in the same order."
        )
