"""`evaluate`: how good is a model, per datum, with what error?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from probgen.backends.protocol import Backend
from probgen.bound import Bound
from probgen.data.sources import as_arrays
from probgen.dist import did_you_mean
from probgen.errors import AlgorithmError, MissingSeed, NonFiniteError, UnknownName
from probgen.feed import merge_inputs
from probgen.fitted import Fitted
from probgen.progress import bar
from probgen.support import SupportCheck


class Measure(Protocol):
    """Something that is known of each datum, with its error.

    Attributes:
        name: of the measure, with its settings.
        unit: such as "nats".
        larger_is_stranger: the direction.

    `bind(bound)` gives a function (params, batch, key) -> dict with "estimate" [batch],
    "standard_error" [batch] and further diagnostics by name.
    """

    name: str
    unit: str
    larger_is_stranger: bool

    def bind_measure(self, bound: Bound) -> Callable: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measures of data: for each, an estimate per datum, its standard error and diagnostics.

    `table["IWAE(1000)"]["estimate"]` is an array with one entry a datum.
    """

    values: dict[str, dict[str, np.ndarray]]
    units: dict[str, str]
    larger_is_stranger: dict[str, bool]
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        if name not in self.values:
            raise UnknownName(
                f"evaluation: no measure {name!r}, expected one of {sorted(self.values)}"
                f"{did_you_mean(name, self.values)}."
            )
        return self.values[name]

    @property
    def num_data(self) -> int:
        return len(next(iter(self.values.values()))["estimate"])

    def mean(self, name: str) -> tuple[float, float]:
        """(mean over data, its standard error): sd over data / sqrt(n), which holds both the
        spread of the data and the noise of each estimate."""
        x = self[name]["estimate"].astype(np.float64)
        error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        return float(x.mean()), error

    def to_pandas(self) -> Any:
        """A data frame, one row a datum, columns "measure/quantity"."""
        import pandas

        return pandas.DataFrame(
            {f"{m}/{q}": a for m, group in self.values.items() for q, a in group.items()}
        )

    def __repr__(self) -> str:
        lines = [f"{'measure':<28}{'mean':>12}{'s.e.':>10}  unit, direction ({self.num_data} data)"]
        for name in self.values:
            mean, error = self.mean(name)
            way = "larger is stranger" if self.larger_is_stranger[name] else "larger is likelier"
            lines.append(f"{name:<28}{mean:>12.3f}{error:>10.3f}  {self.units[name]}, {way}")
        return "\n".join(lines)


def evaluate(
    fitted: Fitted,
    data: Any,
    measures: Iterable[Measure],
    *,
    seed: int | None = None,
    inputs: Mapping[str, Any] | None = None,
    names: tuple[str, ...] | None = None,
    chunk_size: int = 100,
    backend: str | Backend = "auto",
    device: str = "auto",
    progress_bar: bool = True,
) -> Evaluation:
    """Measures each datum, in chunks of `chunk_size`, so that memory does not grow with the data.

    Args:
        fitted: model and parameters.
        data: as in `fit`.
        measures: such as `[ELBO(num_particles=16), IWAE(num_particles=1000)]`.
        seed: an integer.
        chunk_size: data at a time; the noise belongs to the chunk, so keep it when comparing runs.
        backend, device: those of the fit by default.

    Raises:
        MissingSeed, DataError, SupportError, AlgorithmError: what was got, expected, and the cure.
        NonFiniteError: a measure gave NaN for a datum (says which).
    """
    if seed is None:
        raise MissingSeed("evaluate: got no seed, expected an integer such as seed=0.")
    chosen = list(measures) if isinstance(measures, Iterable) else [measures]
    if not chosen or not all(hasattr(m, "bind_measure") for m in chosen):
        raise AlgorithmError(
            f"evaluate: got the measures {chosen}, expected a list such as "
            "[IWAE(num_particles=1000)] of probgen.inference."
        )
    b = fitted.resolve(backend, device)
    arrays = as_arrays(data, names=names)
    constants, per_datum = merge_inputs(fitted.model, arrays, inputs)
    arrays = {**arrays, **per_datum}
    size = len(next(iter(arrays.values())))
    count = -(-size // chunk_size)
    fitted = dataclasses.replace(fitted, constants={**fitted.constants, **constants})
    bound, params = fitted.bind(b, arrays, num_data=size, num_steps=count)
    bound.require_rows("evaluate")
    functions = [b.compile(m.bind_measure(bound), num_calls=count) for m in chosen]
    key = b.key(seed)
    check = SupportCheck(bound, params, key)
    parts: list[list] = [[] for _ in chosen]
    with bar(size * len(chosen), wanted=progress_bar, unit="datum") as shown:
        for start in range(0, size, chunk_size):
            rows = {k: b.asarray(v[start : start + chunk_size]) for k, v in arrays.items()}
            check(rows)
            for i, function in enumerate(functions):
                k = b.fold_in(b.fold_in(key, i), start)
                out = {n: b.to_numpy(v) for n, v in function(params, rows, k).items()}
                _check_finite(chosen[i].name, out, start)
                parts[i].append(out)
                shown(len(out["estimate"]))
    values = {
        m.name: {q: np.concatenate([p[q] for p in part]) for q in part[0]}
        for m, part in zip(chosen, parts, strict=True)
    }
    return Evaluation(
        values,
        {m.name: m.unit for m in chosen},
        {m.name: m.larger_is_stranger for m in chosen},
        {"backend": b.name, "seed": seed, **b.info()},
    )


def _check_finite(name: str, out: dict[str, np.ndarray], start: int) -> None:
    bad = np.flatnonzero(np.isnan(out["estimate"]))
    if len(bad):
        raise NonFiniteError(
            f"evaluate: {name} is NaN for {len(bad)} data, the first is datum {start + bad[0]}; "
            "look at that datum, and at the model's parameters for NaN."
        )
