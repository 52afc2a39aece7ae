"""Posterior predictive checks: do data replicated by the fitted model look like the observed ones?

    theta_s ~ p(theta | y),   y_s ~ p(y | theta_s),   p = P(T(y_s, theta_s) >= T(y, theta_s))

p near 0 or 1: the model does not make data with such a T. Such p-values are not uniform under the
right model (they crowd around 1/2, the data being used twice), so 0.03 is stronger evidence than it
looks, and 0.5 is no proof; choose statistics that the model does not fit directly.

Source: Gelman, Meng & Stern 1996, "Posterior predictive assessment of model fitness".
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from probgen.backends.protocol import Backend
from probgen.data.sources import as_arrays
from probgen.engine.batches import merge_inputs
from probgen.engine.bind import bind
from probgen.engine.bound import Bound
from probgen.engine.draws import latents_of
from probgen.engine.fitted import AnyModel
from probgen.errors import AlgorithmError, NonFiniteError
from probgen.language.declared import checked
from probgen.language.kinds import Inputs, Many, Names
from probgen.language.seeds import check_seed
from probgen.verbs.sampling import start

STATISTICS: dict[str, Callable] = {
    "mean": np.mean, "sd": lambda y: np.std(y, ddof=1) if np.size(y) > 1 else 0.0,
    "min": np.min, "max": np.max,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class PredictiveCheck:
    """Statistics of replicated and observed data. Prints as a table.

    Attributes:
        names: of the statistics.
        observed: [chain, draw, statistics] T(y, theta_s); the same in all draws unless T looks at
            theta.
        replicated: [chain, draw, statistics] T(y_s, theta_s).
        p_values: [statistics] P(replicated >= observed), ties counted half.
        errors: [statistics] Monte Carlo standard errors of the p-values.
        replicates: the replicated data by site, [chain, draw, ...].
    """

    names: tuple[str, ...]
    observed: np.ndarray
    replicated: np.ndarray
    p_values: np.ndarray
    errors: np.ndarray
    replicates: dict[str, np.ndarray]

    def to_pandas(self) -> Any:
        """One row a statistic."""
        import pandas as pd

        axes = (0, 1)
        low, high = np.quantile(self.replicated, [0.025, 0.975], axis=axes)
        return pd.DataFrame(
            {
                "observed": self.observed.mean(axes), "replicated": self.replicated.mean(axes),
                "low": low, "high": high, "p": self.p_values, "error": self.errors,
            },
            index=pd.Index(self.names, name="statistic"),
        )  # fmt: skip

    def __repr__(self) -> str:
        width = max(len("statistic"), *(len(n) for n in self.names))
        lines = [f"{'statistic':{width}}  {'observed':>10}  {'replicated (95 %)':>28}  p"]
        for name, row in self.to_pandas().iterrows():
            span = f"{row.replicated:.4g} ({row.low:.4g} to {row.high:.4g})"
            mark = "  unlike the data" if min(row.p, 1 - row.p) < 0.01 else ""
            lines.append(
                f"{name:{width}}  {row.observed:10.4g}  {span:>28}  {row.p:.3f} ± {row.error:.3f}"
                f"{mark}"
            )
        return "\n".join(lines)

    def plot(self, names: tuple[str, ...] | None = None) -> Any:
        """Figure of each statistic over the replicated data, with the observed value."""
        from probgen.evaluation.calibration.figures import predictive_figure

        return predictive_figure(self, names)


@checked
def posterior_predictive(
    model: AnyModel,
    draws: Any,
    data: Any,
    *,
    inputs: Inputs = None,
    names: Names = None,
    num_draws: Many | None = 1000,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Data replicated at posterior draws.

    Args:
        model: what `pg.infer` was given.
        draws: what it returned, or latents by site name, [chain, draw, ...].
        data: the observed data, as in `pg.infer`.
        inputs, names: as in `pg.infer`.
        num_draws: at most so many draws in all, evenly spread; None takes all.
        seed: an integer.

    Returns:
        (replicated data by site, [chain, draw, ...]; the latents at these draws).

    Raises:
        MissingSeed: there is no seed.
        AlgorithmError: data that observe nothing.
        DataError: draws without a latent of the model.
        ShapeError: draws of another shape than the latent's.
    """
    seed = check_seed(seed, "posterior_predictive")
    b, declared, given, constants = start(model, backend, device)
    arrays = as_arrays(data, names=names)
    shared, per_datum = merge_inputs(declared, arrays, inputs)
    rows = {**arrays, **per_datum}
    bound, params = bind(
        declared, b, data=rows, constants={**constants, **shared}, params=given, seed=seed,
        num_data=len(next(iter(rows.values()))),
    )  # fmt: skip
    if not bound.observed or not bound.latents:
        raise AlgorithmError(
            f"posterior_predictive: got data {sorted(arrays)}, expected data that observe some "
            f"sites of {declared.name!r} and leave some latent."
        )
    # One that all data share and that was summed out has no draws: refused for want of them.
    summed = [n for n in bound.enumerated if not bound.structure.sites[n].is_local]
    hidden = (*bound.latents, *summed)
    latents = latents_of(bound.model.name, hidden, draws, num_draws, "posterior_predictive")
    lead = next(iter(latents.values())).shape[:2]
    size = _rows_of(bound, rows)
    on_device = {k: b.asarray(v) for k, v in rows.items()}

    def run(params: Any, rows: Any, flat: Any, keys: Any) -> Any:
        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            values, key = x
            sites = bound.trace(params, rows, values, key=key, batch_size=size, condition=False)
            return carry, {n: sites[n].value for n in bound.observed}

        return b.scan(step, b.asarray(np.zeros((), np.float32)), (flat, keys))[1]

    flat = {n: b.asarray(v.reshape(-1, *v.shape[2:])) for n, v in latents.items()}
    out = b.compile(run, over="steps")(
        params, on_device, flat, b.split(b.key(seed), lead[0] * lead[1])
    )
    replicated = {n: b.to_numpy(v).reshape(*lead, *v.shape[1:]) for n, v in out.items()}
    for name, value in replicated.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(
                f"posterior_predictive: got NaN or infinity in replicated {name!r}, expected "
                "finite data; look at the draws of its parameters."
            )
    return replicated, latents


@checked
def predictive_check(
    model: AnyModel,
    draws: Any,
    data: Any,
    *,
    statistics: Mapping[str, Callable] | None = None,
    inputs: Inputs = None,
    names: Names = None,
    num_draws: Many | None = 1000,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> PredictiveCheck:
    """Compares replicated data with the observed ones.

    Args:
        statistics: by name, T(y) of one site's data, or T(y, theta) with the latents of one draw
            by name (a discrepancy); None is mean, sd, min and max over all values. With several
            observed sites each is computed for each, as "site: name".
        the rest: as in `posterior_predictive`.

    Raises:
        AlgorithmError: no statistics, or one that is not a function of one or two arguments.
        NonFiniteError: a statistic that is NaN or infinite.
        the rest: as in `posterior_predictive`.
    """
    chosen = STATISTICS if statistics is None else dict(statistics)
    takes_theta = {name: _takes_theta(name, fn) for name, fn in chosen.items()}
    if not chosen:
        raise AlgorithmError("predictive_check: got no statistics, expected at least one function.")
    replicated, latents = posterior_predictive(
        model, draws, data, inputs=inputs, names=names, num_draws=num_draws, seed=seed,
        backend=backend, device=device,
    )  # fmt: skip
    arrays = as_arrays(data, names=names)
    lead = next(iter(latents.values())).shape[:2]
    columns, seen, made = [], [], []
    for site, values in replicated.items():
        y = arrays[site]
        for name, fn in chosen.items():
            columns.append(name if len(replicated) == 1 else f"{site}: {name}")
            of_y, of_rep = np.empty(lead), np.empty(lead)
            fixed = None if takes_theta[name] else float(fn(y))
            for i in np.ndindex(*lead):
                theta = {n: v[i] for n, v in latents.items()} if takes_theta[name] else None
                of_y[i] = float(fn(y, theta)) if fixed is None else fixed
                of_rep[i] = float(fn(values[i]) if theta is None else fn(values[i], theta))
            if not (np.isfinite(of_y).all() and np.isfinite(of_rep).all()):
                raise NonFiniteError(
                    f"predictive_check: got NaN or infinity from the statistic {columns[-1]!r}, "
                    "expected finite numbers; choose one that is defined for all data."
                )
            seen.append(of_y)
            made.append(of_rep)
    observed, replicates = np.stack(seen, -1), np.stack(made, -1)
    above = (replicates > observed) + 0.5 * (replicates == observed)
    p = above.mean((0, 1))
    errors = np.array([_error(above[..., j]) for j in range(len(columns))])
    return PredictiveCheck(tuple(columns), observed, replicates, p, errors, replicated)


def _error(above: np.ndarray) -> float:
    """Monte Carlo standard error of a share; where no draw differs, that of one in n that did."""
    n = above.size
    share = (above.sum() + 0.5) / (n + 1)
    floor = float(np.sqrt(share * (1 - share) / n))
    if np.ptp(above) == 0 or above.shape[1] < 4:
        return floor
    return max(floor, float(array_stats.mcse(above, method="mean")))


def _takes_theta(name: str, fn: Callable) -> bool:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin such as max
        return False
    needed = [p for p in parameters if p.default is p.empty and
              p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    if len(needed) > 2:
        raise AlgorithmError(
            f"predictive_check: the statistic {name!r} takes {len(needed)} arguments, expected "
            "T(y) or T(y, theta)."
        )
    return len(needed) == 2


def _rows_of(bound: Bound, rows: Mapping[str, np.ndarray]) -> int:
    """Size of the data plate."""
    for name in bound.observed:
        site = bound.structure.sites[name]
        if site.is_local:
            return int(rows[name].shape[len(site.plates) - 1])
    return len(next(iter(rows.values())))
