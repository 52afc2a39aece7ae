"""Tables of measures, made of chunks in any order, and of parts that were made apart.

A part (a shard) holds what was measured of its data and nothing that only all data together can
tell: `merge` puts the parts together and lets the measures settle, so that the table is the one of
a single call, to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from probgen.engine.measure import Measure
from probgen.errors import DataError, DeclarationError, SaveError
from probgen.language.content import RowsMark
from probgen.language.declared import checked
from probgen.language.identity import identity
from probgen.language.kinds import PathLike, Rule
from probgen.records import places, store
from probgen.records.codec import decode, encode
from probgen.records.entries import AGAIN, differences, require_same
from probgen.records.evaluation import Evaluation

Values = dict[str, dict[str, np.ndarray]]  # by measure and quantity


class Columns:
    """Values of a range of data by measure and quantity, filled chunk by chunk in any order."""

    def __init__(self, rows: range):
        self.rows, self.is_filled = rows, np.zeros(len(rows), bool)
        self.values: Values = {}

    def put(self, first: int, values: Mapping[str, Mapping[str, np.ndarray]]) -> int:
        """Takes the values of the chunk that begins at `first`; gives how many data it has."""
        count, at = 0, first - self.rows.start
        for name, group in values.items():
            columns = self.values.setdefault(name, {})
            for quantity, v in group.items():
                if quantity not in columns:
                    columns[quantity] = np.empty((len(self.rows), *v.shape[1:]), v.dtype)
                count = len(v)
                columns[quantity][at : at + count] = v
        assert not self.is_filled[at : at + count].any(), f"data from {first} on came twice"
        self.is_filled[at : at + count] = True
        return count

    def whole(self) -> Values:
        """All values, once every datum has its own."""
        assert self.is_filled.all(), f"values of {(~self.is_filled).sum()} data never came"
        return self.values


def settled(
    measures: Sequence[Measure], values: Values, info: dict, common: list[str]
) -> Evaluation:
    """The table of all data, `common` being what is said of every measure."""
    values = {m.name: values[m.name] for m in measures}
    values |= {m.name: m.settle(values[m.name]) for m in measures if hasattr(m, "settle")}
    said = {
        m.name: [*common, *(m.warnings(values[m.name]) if hasattr(m, "warnings") else [])]
        for m in measures
    }
    return _table(measures, values, said, info)


def _table(measures: Sequence[Measure], values: Values, said: dict, info: dict) -> Evaluation:
    return Evaluation.from_values(
        values,
        units={m.name: m.unit for m in measures},
        larger_is_stranger={m.name: m.larger_is_stranger for m in measures},
        warnings=said,
        shared_error={m.name: getattr(m, "shared_error", False) for m in measures},
        info=info,
    )


def described(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    """What a table says of its measures before there is one."""
    return [
        {"name": m.name, "unit": m.unit, "larger_is_stranger": bool(m.larger_is_stranger),
         "warnings": [], "shared_error": bool(getattr(m, "shared_error", False))}
        for m in measures
    ]  # fmt: skip


class Part(NamedTuple):
    """The `number`-th of `total` parts of `size` data, those of `rows`, cut between chunks."""

    number: int
    total: int
    size: int
    rows: range
    chunk_size: int

    @staticmethod
    def of(shard: str, size: int, chunk_size: int, path: Any) -> Part:
        """The part that is meant by "3/8", cut between chunks.

        Raises:
            DeclarationError: it says no such part, or more parts than there are chunks; no path.
        """
        said = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard.strip())
        number, count = map(int, said.groups()) if said else (0, 0)
        if not 1 <= number <= count:
            raise DeclarationError(
                f"evaluate: got shard={shard!r}, expected I/N with I from 1 to N, such as '3/8' "
                "for the third of eight parts."
            )
        if path is None:
            raise DeclarationError(
                f"evaluate: got shard={shard!r} without a path, expected a folder of its own for "
                "the part: path='scores/3-of-8'; pg.merge puts all parts together."
            )
        chunks = -(-size // chunk_size)
        if count > chunks:
            raise DeclarationError(
                f"evaluate: got {count} shards of {size} data in {chunks} chunks, expected at most "
                "a shard for each chunk; give fewer shards, or a smaller chunk_size."
            )
        ends = [min(i * chunks // count * chunk_size, size) for i in (number - 1, number)]
        return Part(number, count, size, range(*ends), chunk_size)

    def entries(self, data: str) -> dict[str, Any]:
        """What is added to what an evaluation is of: the part, and what all parts have in common;
        `data` tells the data set from others (`provenance.probed`), since a part reads but its own.
        """
        shard = f"{self.number}/{self.total} of {self.size} data"
        return {"shard": shard, "data set": data, "chunk_size": self.chunk_size}

    def table(
        self, measures: Sequence[Measure], values: Values, info: dict, common: list[str]
    ) -> Evaluation:
        """The part by itself, with all that `merge` needs."""
        first, stop = self.rows.start, self.rows.stop
        text = (
            f"part {self.number} of {self.total}, data {first} to {stop - 1} of {self.size}: its "
            "standard errors are not yet judged by all data; pg.merge puts the parts together."
        )
        info |= {
            "part": [self.number, self.total, first, self.size], "common": common,
            "declared": [_encoded(m) for m in measures],
        }  # fmt: skip
        values = {m.name: values[m.name] for m in measures}
        return _table(measures, values, {m.name: [text] for m in measures}, info)


def _encoded(measure: Measure) -> Any:
    """The measure as JSON, or None for one that no file can hold."""
    try:
        return encode(measure)
    except SaveError:
        return None


OF_PARTS = ("shard", "data set", "chunk_size")  # of `Part.entries`: a whole table has none
Parts = Annotated[
    Any,
    Rule(
        "a list of the parts' folders or tables",
        lambda v: isinstance(v, Iterable) and not isinstance(v, str | bytes | Mapping),
        alone=True,
    ),
]


@checked
def merge(
    parts: Parts, *, measures: Iterable[Measure] | None = None, path: PathLike | None = None
) -> Evaluation:
    """The whole table of the parts that `evaluate(..., shard="I/N")` made, in any order.

    It is the table of a call without shards, to the bit, and is taken for it: the same call of
    `evaluate` with this `path` returns it.

    Args:
        parts: folders of the parts, or their tables; of folders one at a time is in memory.
        measures: those of the parts, where no file can hold them (your own, or with reference
            data); else they are read from the parts.
        path: a folder for the table.

    Raises:
        DataError: a part that is given twice, that is missing, or that is a whole table; parts of
            different evaluations (says in what; of other data as far as 16 of them, spread over
            all, tell).
        DeclarationError: measures that must be given, or that are others than the parts'.
        SaveError: a folder that cannot be read or written, or holds another table.
    """
    given = list(parts)
    place = None if path is None else places.at(path)
    if place is not None:
        store.check_place(place, "evaluation")
    if not given:
        raise DataError("merge: got no part, expected what evaluate(..., shard='I/N') made.")
    infos = [_part_of(each).info for each in given]  # of each no more than that
    first = infos[0]
    for info, each in zip(infos[1:], given[1:], strict=True):
        _require_alike(first, info, each)
    _require_all([info["part"] for info in infos], given)
    chosen = _measures(first, measures)
    columns, mark = Columns(range(first["part"][3])), RowsMark()
    for each in given:
        table = _part_of(each)
        columns.put(table.info["part"][2], {n: _arrays(table, n) for n in table})
        mark.join(table.info["data"])
    made = {k: v for k, v in first["made"].items() if k not in OF_PARTS}
    info = {k: v for k, v in first.items() if k not in ("part", "common", "declared")}
    info |= {"made": made, "data": mark.digest()}
    out = settled(chosen, columns.whole(), info, first["common"])
    if place is not None:
        with places.held(place):
            if store.check_place(place, "evaluation"):
                there = Evaluation.load(place).info
                found = {**there.get("made", {}), "data": there.get("data")}
                require_same(place, found, {**made, "data": info["data"]}, AGAIN)
            out.save(place)
    return out


def _part_of(place: Any) -> Evaluation:
    table = place if isinstance(place, Evaluation) else Evaluation.load(place)
    if len(table.info.get("part", ())) != 4:
        raise DataError(
            f"merge: got {_name(place)}, which is a whole table, expected the parts that "
            "evaluate(..., shard='I/N') made."
        )
    return table


def _require_alike(first: Mapping[str, Any], info: Mapping[str, Any], place: Any) -> None:
    ours, theirs = (
        {**{k: v for k, v in i["made"].items() if k != "shard"}, "number of shards": i["part"][1],
         "number of data": i["part"][3]}
        for i in (first, info)
    )  # fmt: skip
    differs = differences(theirs, ours)
    if differs:
        raise DataError(
            f"merge: got {_name(place)}, a part with another {', another '.join(differs)}, "
            "expected parts of one evaluation; leave it out, or make it again."
        )


def _require_all(parts: list[list[int]], places: list[Any]) -> None:
    where: dict[int, Any] = {}
    for (number, count, *_), place in zip(parts, places, strict=True):
        if number in where:
            raise DataError(
                f"merge: got part {number} of {count} twice ({_name(where[number])} and "
                f"{_name(place)}), expected each once; leave one out."
            )
        where[number] = place
    count = parts[0][1]
    missing = sorted(set(range(1, count + 1)) - set(where))
    if missing:
        shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        raise DataError(
            f"merge: lacks {len(missing)} of {count} parts ({shown}), expected all of them; run "
            "these shards, which go on from what is kept."
        )


def _measures(first: Mapping[str, Any], given: Iterable[Measure] | None) -> list[Measure]:
    if given is not None:
        chosen = list(given)
        found = {"measures": [f"{m.name} {identity(m, m.name)}" for m in chosen]}
        differs = differences(found, {"measures": first["made"]["measures"]})
        if differs:
            raise DeclarationError(f"merge: got other {differs[0]}; give those of the parts.")
        return chosen
    declared, made = first["declared"], first["made"]["measures"]
    lost = [m.rpartition(" ")[0] for m, d in zip(made, declared, strict=True) if d is None]
    if lost:
        raise DeclarationError(
            f"merge: the parts do not hold the measure {lost[0]!r}, which is your own or has "
            "reference data, expected it in measures=[...], all that the parts have."
        )
    return [decode(d) for d in declared]


def _arrays(table: Evaluation, name: str) -> dict[str, np.ndarray]:
    return {str(q): v.values for q, v in table[name].data_vars.items()}


def _name(place: Any) -> str:
    return "a table" if isinstance(place, Evaluation) else str(place)
