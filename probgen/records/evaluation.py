"""What `pg.evaluate` returns: measures of data, one entry a datum, as a tree of xarray data sets.

One group a measure, with the variables "estimate", "standard_error" where there is one (NaN for a
datum whose estimate is a bound only), "lower_bound" or "upper_bound" where the truth is beyond it
in 95 % of cases, and its diagnostics, all over the dimension "datum". Units, the direction and
warnings are attributes.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray

from probgen.errors import DataError, SaveError, UnknownName
from probgen.language.content import content
from probgen.language.dist import did_you_mean
from probgen.language.viewed import Plotted
from probgen.records import atomic, places, store
from probgen.records.chunks import ChunkStore, check_estimates, grouped, named

Values = dict[str, np.ndarray]
_WHOLE = "of the whole table"


class Evaluation(Plotted):
    """Measures of data: for each, an estimate per datum, its standard error and diagnostics.

    `table["IWAE(1000)"]["estimate"]` has one entry a datum. Two tables of the same data are put
    together by `|`.

    Args:
        data: a DataTree, one group a measure, attributes "unit", "larger_is_stranger", "warnings",
            "shared_error".
        info: what ran: backend, versions, seed.
    """

    _plot = "plot_evaluation"

    def __init__(self, data: xarray.DataTree, info: Mapping[str, Any] | None = None):
        self.data, self.info = data, dict(info or {})

    @classmethod
    def from_values(
        cls,
        values: Mapping[str, Mapping[str, Any]],
        *,
        units: Mapping[str, str],
        larger_is_stranger: Mapping[str, bool],
        warnings: Mapping[str, list[str]] | None = None,
        shared_error: Mapping[str, bool] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """A table from arrays: {measure: {"estimate": [n], ...}}.

        Args:
            values, units, larger_is_stranger, warnings: by measure.
            shared_error: measures whose "standard_error" is one error that all data share, such as
                that of a log Z; the others' are each datum's own.
            info: what ran.

        Raises:
            DataError: a name with a slash, arrays of different lengths, a measure without unit or
                direction.
        """
        groups = {}
        lengths = {np.shape(a)[:1] for group in values.values() for a in group.values()}
        if len(lengths) != 1:
            raise DataError(
                f"Evaluation: got arrays of the lengths {sorted(lengths)}, expected one entry a "
                "datum in each."
            )
        for name, group in values.items():
            if name not in units or name not in larger_is_stranger:
                raise DataError(
                    f"Evaluation: got no unit or no direction of {name!r}, expected one of each "
                    "measure: units={...: 'nats'}, larger_is_stranger={...: True}."
                )
            check_name(name)
            arrays = {}
            for quantity, array in group.items():
                array = np.asarray(array)
                inner = [f"{quantity}_dim_{i}" for i in range(array.ndim - 1)]
                arrays[quantity] = (("datum", *inner), array)
            attributes = {
                "unit": units[name],
                "larger_is_stranger": bool(larger_is_stranger[name]),
                "warnings": list((warnings or {}).get(name, ())),
                "shared_error": bool((shared_error or {}).get(name, False)),
            }
            groups[name] = xarray.Dataset(arrays, attrs=attributes)
        return cls(xarray.DataTree.from_dict(groups), info)

    # ---- reading

    @property
    def names(self) -> list[str]:
        """The measures, in the order in which they were asked for."""
        return list(self.data.children)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> xarray.Dataset:
        if name not in self.names:
            raise UnknownName(
                f"evaluation: no measure {name!r}, expected one of {sorted(self.names)}"
                f"{did_you_mean(name, self.names)}."
            )
        return self.data[name].dataset

    @property
    def num_data(self) -> int:
        return int(self[self.names[0]].sizes["datum"])

    @property
    def units(self) -> dict[str, str]:
        """The unit of each measure."""
        return {n: self[n].attrs["unit"] for n in self.names}

    @property
    def larger_is_stranger(self) -> dict[str, bool]:
        """The direction of each measure."""
        return {n: bool(self[n].attrs["larger_is_stranger"]) for n in self.names}

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What the measures say about how far they can be trusted."""
        return {n: list(self[n].attrs["warnings"]) for n in self.names}

    @property
    def shared_error(self) -> dict[str, bool]:
        """Of each measure, whether its standard error is one that all data share."""
        return {n: bool(self[n].attrs.get("shared_error", False)) for n in self.names}

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes a row a datum: its index, and of each measure the estimate, in the measure's own
        sign, and the standard error where there is one (empty where no interval holds)."""
        columns: dict[str, np.ndarray] = {"index": np.arange(self.num_data)}
        for name in self.names:
            columns[name] = np.asarray(self[name]["estimate"].values)
            if "standard_error" in self[name]:
                columns[f"{name} s.e."] = np.asarray(self[name]["standard_error"].values)
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            rows.writerow(["" if v != v else v.item() for v in row])
        atomic.put_text(atomic.at(path), out.getvalue())

    def strangeness(self, name: str) -> np.ndarray:
        """[n] the estimates, turned so that larger means stranger; for OOD statistics."""
        x = np.asarray(self[name]["estimate"].values, np.float64)
        return x if self.larger_is_stranger[name] else -x

    def mean(self, name: str) -> tuple[float, float]:
        """(mean over data, its standard error): sd over data / sqrt(n), which holds both the
        spread of the data and the noise of each estimate. An error that all data share moves them
        together, is no part of that spread, and is added in quadrature (`mc_error`). Of a measure
        that is a bound (`bound`) it is the mean of the bound, and that one's error."""
        x = np.asarray(self[name]["estimate"].values, np.float64)
        error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        shared = self.mc_error(name) if self.shared_error[name] else None
        return float(x.mean()), error if shared is None else math.hypot(error, shared)

    def mc_error(self, name: str) -> float | None:
        """Standard error of the mean that is due to Monte Carlo alone, with these data held fixed;
        None for a measure without standard errors, or with data whose estimate is a bound only.

            own errors, independent     sqrt(sum of squares) / n
            one error, shared by all    sqrt(mean of squares): it does not average out

        Where a measure marked as shared has errors of its own beside the shared one, all of it is
        taken as shared: too large an error, never too small a one.
        """
        group = self[name]
        if "standard_error" not in group:
            return None
        errors = np.asarray(group["standard_error"].values, np.float64)
        if np.isnan(errors).any():
            return None
        mean_square = float((errors**2).mean())
        return math.sqrt(mean_square if self.shared_error[name] else mean_square / len(errors))

    def bound(self, name: str) -> str:
        """What the estimates are in expectation: "lower" or "upper" bounds, or "" for neither."""
        return next((b for b in ("lower", "upper") if f"{b}_bound" in self[name]), "")

    def bound_only(self, name: str) -> int:
        """For how many data the estimate is a bound, with no interval about it."""
        if not self.bound(name):
            return 0
        if "standard_error" not in self[name]:
            return self.num_data
        return int(np.isnan(self[name]["standard_error"].values).sum())

    def mean_limit(self, name: str, level: float = 0.95) -> float | None:
        """What the true mean over these data is beyond with probability `level`, whatever the tail
        of the weights; None for a measure that is no bound, or in a unit other than nats and bits.

            mean of estimates -+ log(1 / (1 - level)) / n         / n not where the error is shared

        By Markov's inequality: prod_i p_hat_i / p_i has mean 1, since each datum has draws of its
        own. Source: Grosse, Ghahramani & Adams 2015, arXiv:1511.02543, for n = 1.
        """
        side, nats = self.bound(name), {"nats": 1.0, "bits": math.log(2.0)}.get(self.units[name])
        if not side or nats is None:
            return None
        slack = -math.log(1.0 - level) / nats / (1 if self.shared_error[name] else self.num_data)
        mean = float(np.asarray(self[name]["estimate"].values, np.float64).mean())
        return mean - slack if side == "lower" else mean + slack

    def select(self, indices: Any) -> Evaluation:
        """The table of some of the data: an index, several, or a mask. Warnings are still those of
        the whole table, and say so.

        Raises:
            DataError: no datum, or one that is not there.
        """
        everyone = np.arange(self.num_data)
        try:
            chosen = (
                np.atleast_1d(everyone[np.asarray(indices)]) if np.size(indices) else everyone[:0]
            )
        except (IndexError, TypeError) as error:
            raise DataError(
                f"select: got {indices!r} ({error}), expected indices below {self.num_data}, or "
                "one True or False a datum."
            ) from error
        if not len(chosen):
            raise DataError("select: got no index, expected at least one datum.")
        tree = {}
        for name in self.names:
            said = [
                text if text.startswith(_WHOLE) else f"{_WHOLE} ({self.num_data} data): {text}"
                for text in self.warnings[name]
            ]
            tree[name] = self[name].isel(datum=chosen).assign_attrs(warnings=said)
        info = {k: v for k, v in self.info.items() if k != "made"}
        if "data" in info:
            info["data"] = content({"of": np.array(info["data"]), "chosen": chosen})
        return Evaluation(xarray.DataTree.from_dict(tree), info)

    def __or__(self, other: Evaluation) -> Evaluation:
        if not isinstance(other, Evaluation):
            return NotImplemented
        mine, theirs = self.info.get("data"), other.info.get("data")
        if other.num_data == self.num_data and None not in (mine, theirs) and mine != theirs:
            raise DataError(
                f"Evaluation: got two tables of {self.num_data} data each, which are other data or "
                "in another order, expected two of the same; what is compared datum by datum must "
                "be of the same datum."
            )
        if other.num_data != self.num_data:
            raise DataError(
                f"Evaluation: got tables of {self.num_data} and {other.num_data} data, expected "
                "two of the same data."
            )
        twice = sorted(set(self.names) & set(other.names))
        if twice:
            raise DataError(
                f"Evaluation: got {twice[0]!r} in both tables, expected each measure once; drop it "
                "from one of them."
            )
        tree = {n: t[n] for t in (self, other) for n in t.names}
        info = {**other.info, **self.info}
        info.pop("made", None)  # of one of them alone
        return Evaluation(xarray.DataTree.from_dict(tree), info)

    # ---- other forms

    def to_pandas(self) -> Any:
        """A data frame, one row a datum, columns "measure/quantity" ("measure/quantity/i" for a
        diagnostic with several numbers a datum)."""
        import pandas

        columns = {}
        for name in self.names:
            for quantity, array in self[name].data_vars.items():
                flat = array.values.reshape(len(array), -1)
                if array.ndim == 1:
                    columns[f"{name}/{quantity}"] = flat[:, 0]
                else:
                    columns |= {f"{name}/{quantity}/{i}": c for i, c in enumerate(flat.T)}
        return pandas.DataFrame(columns)

    def summary(self) -> list[dict[str, Any]]:
        """One record a measure: mean, its standard error, the Monte Carlo part of it, which bound
        it is, if any, for how many data only that, what the mean is beyond in 95 % of cases, unit,
        direction and warnings; numbers and text only, ready for JSON."""
        rows = []
        for name in self.names:
            mean, error = self.mean(name)
            rows.append(
                {
                    "measure": name,
                    "mean": mean,
                    "standard_error": error,
                    "monte_carlo_error": self.mc_error(name),
                    "bound": self.bound(name),
                    "bound_only": self.bound_only(name),
                    "mean_limit": self.mean_limit(name),
                    "unit": self.units[name],
                    "larger_is_stranger": self.larger_is_stranger[name],
                    "num_data": self.num_data,
                    "warnings": self.warnings[name],
                }
            )
        return rows

    def __repr__(self) -> str:
        width = max(28, max(map(len, self.names), default=0) + 2)
        head = f"{'measure':<{width}}{'mean':>12}{'s.e.':>10}{'of it MC':>10}"
        lines = [f"{head}  unit, direction ({self.num_data} data)"]
        for row in self.summary():
            way = "larger is stranger" if row["larger_is_stranger"] else "larger is likelier"
            mc = row["monte_carlo_error"]
            unknown = "bound" if row["bound_only"] else ""
            error = f"{mc:>10.3f}" if mc is not None else f"{unknown:>10}"
            lines.append(
                f"{row['measure']:<{width}}{row['mean']:>12.3f}{row['standard_error']:>10.3f}"
                f"{error}  {row['unit']}, {way}"
            )
            if row["mean_limit"] is not None:
                sign = ">" if row["bound"] == "lower" else "<"
                lines.append(
                    f"  {row['bound']} bound: of these data the true mean is {sign} "
                    f"{row['mean_limit']:.3f} with probability 95 %"
                )
            lines += [f"  ! {text}" for text in row["warnings"]]
        return "\n".join(lines)

    # ---- on disk

    def save(self, path: str | os.PathLike) -> None:
        """Writes the table as a folder of safetensors and JSON, all or nothing.

        Raises:
            SaveError: the folder cannot be written, or holds something else.
        """
        values = {n: dict(self[n].data_vars) for n in self.names}
        measures = [
            {
                "name": n, "unit": self.units[n], "larger_is_stranger": self.larger_is_stranger[n],
                "warnings": self.warnings[n], "shared_error": self.shared_error[n],
            }
            for n in self.names
        ]  # fmt: skip
        config = {"kind": "evaluation", "measures": measures, "info": self.info}
        store.write_folder(path, {"table": named(values)}, config)

    @classmethod
    def load(cls, path: str | os.PathLike, *, partial: bool = False) -> Evaluation:
        """Reads what `save` wrote, or what `pg.evaluate` has written at its `path` so far.

        Args:
            path: the folder, or its address.
            partial: take the chunks that are there where the table is not there yet. "datum" then
                has the numbers of the data, and standard errors are not yet judged by all of them.

        Raises:
            SaveError: missing, damaged, truncated or foreign folder.
        """
        place = places.at(path)
        if partial and not places.stands(place):
            try:
                values, ids, config = ChunkStore(path, {}).so_far()
            except SaveError:
                if places.stands(place):  # finished meanwhile
                    return cls.load(path)
                raise
            said = f"{len(ids)} data so far: standard errors are not yet judged by all data."
            measures = [{**m, "warnings": [said]} for m in config["measures"]]
            found = cls._read(path, values, measures, {"made": config["made"]})
            tree = {n: found[n].assign_coords(datum=ids) for n in found.names}
            return cls(xarray.DataTree.from_dict(tree), found.info)
        arrays, config = store.read_folder(path, "evaluation")
        values = grouped(arrays["table"], [m["name"] for m in config["measures"]], str(path))
        check_estimates(values, None, str(path))
        return cls._read(path, values, config["measures"], config["info"])

    @classmethod
    def _read(cls, path: Any, values: Any, measures: list[dict], info: Any) -> Evaluation:
        try:
            return cls.from_values(
                values,
                units={m["name"]: m["unit"] for m in measures},
                larger_is_stranger={m["name"]: m["larger_is_stranger"] for m in measures},
                warnings={m["name"]: m["warnings"] for m in measures},
                shared_error={m["name"]: m.get("shared_error", False) for m in measures},
                info=info,
            )
        except (DataError, ValueError) as error:
            raise SaveError(f"{path}: its table cannot be read ({error}).") from error


def check_name(name: str) -> None:
    """Refuses a measure's name that would be two.

    Raises:
        DataError: it has a slash.
    """
    if "/" in name:
        raise DataError(f"Evaluation: got a measure {name!r}, expected a name without '/'.")
