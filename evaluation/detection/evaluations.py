"""Scores out of tables: what `pg.evaluate` gave for several data sets, as `compare` takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.errors import AlgorithmError, DataError
from probgen.records.evaluation import Evaluation


def check_tables(who: str, tables: Mapping[str, Evaluation]) -> None:
    """Refuses tables of other measures than the first's.

    Args:
        who: what error messages begin with.
        tables: {data set: its table}, at least one.

    Raises:
        AlgorithmError: other measures than in the first.
    """
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        if set(table.names) != set(first.names):
            raise AlgorithmError(
                f"{who}: got the measures {table.names} of {name!r}, expected {first.names} as of "
                f"{first_name!r}; evaluate every set with the same measures."
            )


def scores_of(
    in_table: Evaluation, out_tables: Mapping[str, Evaluation] | None, *, who: str = "compare"
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{measure: (scores of the own data, {data set: scores})}, every score larger = stranger.

    Args:
        in_table: `pg.evaluate` of data like the training data, held out from it.
        out_tables: {data set: `pg.evaluate` of it by the same measures}.
        who: what error messages begin with.

    Raises:
        AlgorithmError: no other tables, or tables of other measures.
        DataError: no other data set.
    """
    if out_tables is None:
        raise AlgorithmError(
            f"{who}: got no table for the other data sets, expected a mapping of names to tables; "
            "pass {'letters': pg.evaluate(...)} after the table of the model's own data."
        )
    if not out_tables:
        raise DataError(
            f"{who}: got no other data set, expected at least one; pass {{'letters': "
            "pg.evaluate(...)}."
        )
    check_tables(who, {"the first table": in_table, **out_tables})
    return {
        m: (in_table.strangeness(m), {k: t.strangeness(m) for k, t in out_tables.items()})
        for m in in_table.names
    }
