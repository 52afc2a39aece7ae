"""Have the chains met, and how many independent draws are they worth?

R-hat is the larger of the rank-normalised split one and that of the folded draws. It, the effective
sample sizes of bulk and tail (5 % and 95 % quantiles) and the Monte Carlo standard errors of mean
and quantiles are ArviZ's. What ArviZ has no answer for is said in words here: a chain that never
moves has no R-hat (NaN, shown as "undefined"; never 1), no effective sample size and no error.

Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, arXiv:1903.08008; E-BFMI: Betancourt
2016, arXiv:1604.00695.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from probgen.errors import DataError, NonFiniteError, ShapeError
from probgen.evaluation.calibration.study import scalars
from probgen.language.declared import checked

MAX_RHAT = 1.01
ESS_PER_CHAIN, ESS_IN_ALL = 100, 400
MIN_BFMI = 0.3
COLUMNS = (
    "mean", "sd", "mcse_mean", "q5", "mcse_q5", "q95", "mcse_q95", "rhat", "ess_bulk", "ess_tail",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the chains allow. Prints as a table with a verdict.

    Attributes:
        names: of the scalars.
        values: [scalars, columns] by `COLUMNS`; NaN is undefined.
        problems: for each scalar, what is wrong, in words; empty where nothing is.
        num_chains, num_draws: of the chains.
        divergences: transitions that diverged, in all; None where not recorded.
        reached_max_treedepth: transitions cut short; None where not recorded.
        bfmi: [chains] energy's fraction of missing information; None where not recorded.
    """

    names: tuple[str, ...]
    values: np.ndarray
    problems: tuple[str, ...]
    num_chains: int
    num_draws: int
    divergences: int | None = None
    reached_max_treedepth: int | None = None
    bfmi: np.ndarray | None = None

    def column(self, name: str) -> np.ndarray:
        """[scalars] one column of the table, such as "rhat"."""
        return self.values[:, COLUMNS.index(name)]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against the draws, in sentences."""
        out = [f"{n}: {p}." for n, p in zip(self.names, self.problems, strict=True) if p]
        if self.divergences:
            share = self.divergences / (self.num_chains * self.num_draws)
            out.append(
                f"{self.divergences} transitions diverged ({share:.1%}): the draws miss a region "
                "of high curvature; raise target_accept_prob, or reparametrise."
            )
        if self.reached_max_treedepth:
            out.append(
                f"{self.reached_max_treedepth} trajectories were cut at max_tree_depth: slow, not "
                "wrong; raise it, or use dense_mass."
            )
        if self.bfmi is not None:
            for chain, value in enumerate(self.bfmi):
                if not value >= MIN_BFMI:  # NaN is no pass
                    told = "undefined" if np.isnan(value) else f"{value:.2f}"
                    out.append(
                        f"chain {chain}: E-BFMI is {told}, expected at least {MIN_BFMI}: momentum "
                        "explores the energy's tails badly; reparametrise."
                    )
        return tuple(out)

    @property
    def is_good(self) -> bool:
        """Nothing speaks against the draws (trajectories cut short alone do not)."""
        bad_bfmi = self.bfmi is not None and not (self.bfmi >= MIN_BFMI).all()
        return not (any(self.problems) or self.divergences or bad_bfmi)

    def verdict(self) -> str:
        """In plain words."""
        size = f"{self.num_chains} chains of {self.num_draws} draws"
        if not self.is_good:
            return "\n".join([f"Do not trust these draws yet ({size}):", *self.warnings])
        return "\n".join([f"Nothing speaks against these draws ({size}).", *self.warnings])

    def to_pandas(self) -> Any:
        """One row a scalar."""
        import pandas as pd

        index = pd.Index(self.names, name="quantity")
        return pd.DataFrame(self.values, index=index, columns=COLUMNS).assign(problem=self.problems)

    def __repr__(self) -> str:
        width = max(len("quantity"), *(len(n) for n in self.names))
        head = ("mean", "± mcse", "sd", "5 %", "95 %", "R-hat", "ESS bulk", "ESS tail")
        shown = ("mean", "mcse_mean", "sd", "q5", "q95", "rhat", "ess_bulk", "ess_tail")
        lines = [f"{'quantity':{width}}" + "".join(f"{h:>10}" for h in head)]
        # The worst first: undefined R-hats, then the largest ones.
        rhat = np.nan_to_num(self.column("rhat"), nan=np.inf)
        order = np.argsort(-rhat, kind="stable")
        for i in order[:40]:
            cells = (self.values[i, COLUMNS.index(c)] for c in shown)
            row = "".join(f"{_cell(c, v):>10}" for c, v in zip(shown, cells, strict=True))
            lines.append(f"{self.names[i]:{width}}{row}")
        if len(order) > 40:
            lines.append(f"... and {len(order) - 40} more with smaller R-hat")
        return "\n".join([*lines, self.verdict()])


def _cell(column: str, value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return {"rhat": f"{value:.3f}", "ess_bulk": f"{value:.0f}", "ess_tail": f"{value:.0f}"}.get(
        column, f"{value:.4g}"
    )


@checked
def diagnose(draws: Any) -> Diagnosis:
    """R-hat, effective sample sizes and Monte Carlo errors of every scalar.

    Args:
        draws: what `pg.infer` returns; or arrays [chain, draw, ...] by name; or one such array.

    Raises:
        ShapeError: no chain and draw axes, different ones, or fewer than four draws.
        NonFiniteError: NaN or infinity among the draws.
        DataError: draws that are not numbers.
    """
    groups, stats = _read(draws)
    sizes = {v.shape[:2] for v in groups.values()}
    if any(len(s) < 2 for s in sizes) or len(sizes) != 1 or next(iter(sizes))[1] < 4:
        told = {n: v.shape for n, v in groups.items()}
        raise ShapeError(
            f"diagnose: got draws of shapes {told}, expected [chain, draw, ...] with the same "
            "chains and at least 4 draws for all; a single chain is v[None]."
        )
    num_chains, num_draws = next(iter(sizes))
    rows, problems, names = [], [], []
    for name, each in scalars(groups, 2).items():
        if not np.isfinite(each).all():
            raise NonFiniteError(
                f"diagnose: got {int((~np.isfinite(each)).sum())} draws of {name!r} that are NaN "
                "or infinite, expected finite numbers; see in which chain the sampler failed."
            )
        row = _measure(each)
        rows.append([row[c] for c in COLUMNS])
        problems.append(_problem(each, row))
        names.append(name)
    flags = {k: int(np.asarray(stats[k]).sum()) for k in ("diverging", "reached_max_treedepth")
             if k in stats}  # fmt: skip
    return Diagnosis(
        tuple(names), np.array(rows), tuple(problems), num_chains, num_draws,
        flags.get("diverging"), flags.get("reached_max_treedepth"), _bfmi(stats.get("energy")),
    )  # fmt: skip


def _read(draws: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(draws by name, sample statistics by name)."""
    stats: dict[str, Any] = {}
    if hasattr(draws, "children") and "posterior" in draws.children:
        if "sample_stats" in draws.children:
            stats = {k: v.values for k, v in draws["sample_stats"].data_vars.items()}
        found: Mapping[str, Any] = {k: v.values for k, v in draws["posterior"].data_vars.items()}
    elif isinstance(draws, Mapping):
        found = draws
    else:
        found = {"value": draws}
    out = {}
    for name, value in found.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"diagnose: got draws of {name!r} of type {array.dtype}, expected numbers; give "
                "what pg.infer returns, or arrays [chain, draw, ...]."
            )
        out[name] = array.astype(np.float64)
    if not out:
        raise DataError("diagnose: got no draws, expected at least one array [chain, draw, ...].")
    return out, stats


def _measure(x: np.ndarray) -> dict[str, float]:
    """The columns of one scalar, from draws [chain, draw]."""
    q5, q95 = np.quantile(x, [0.05, 0.95])
    out = dict.fromkeys(COLUMNS, np.nan)
    out.update(mean=x.mean(), sd=x.std(ddof=1), q5=q5, q95=q95)
    if not (np.ptp(x, axis=1) > 0).any():
        return out | {"sd": 0.0 if np.ptp(x) == 0 else out["sd"]}
    # A half chain without movement makes ArviZ divide by zero; its inf is the right limit then.
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if len(x) > 1:
            out["rhat"] = float(array_stats.rhat(x, method="rank"))
        out["ess_bulk"] = float(array_stats.ess(x, method="bulk"))
        out["ess_tail"] = float(array_stats.ess(x, method="tail", prob=(0.05, 0.95)))
        out["mcse_mean"] = float(array_stats.mcse(x, method="mean"))
        out["mcse_q5"] = float(array_stats.mcse(x, method="quantile", prob=0.05))
        out["mcse_q95"] = float(array_stats.mcse(x, method="quantile", prob=0.95))
    return out


def _problem(x: np.ndarray, row: Mapping[str, float]) -> str:
    """What is wrong with one scalar, in words; "" where nothing is."""
    still = np.flatnonzero(np.ptp(x, axis=1) == 0)
    if len(still) == len(x):
        return (
            "constant: no chain ever moves, so R-hat and effective sample size are undefined; the "
            "sampler rejects everything, or the quantity is no random one"
        )
    found = []
    if len(still):
        found.append(f"chain{'s' * (len(still) > 1)} {', '.join(map(str, still))} never moved")
    if np.isnan(row["rhat"]):
        found.append(
            "R-hat is undefined with one chain; run at least two" if len(x) == 1
            else "R-hat is undefined"
        )  # fmt: skip
    elif not row["rhat"] < MAX_RHAT:
        found.append(f"R-hat is {row['rhat']:.3f}, expected below {MAX_RHAT}: chains disagree")
    least = max(ESS_PER_CHAIN * len(x), ESS_IN_ALL)
    for kind in ("bulk", "tail"):
        ess = row[f"ess_{kind}"]
        if not ess >= least:
            told = "undefined" if np.isnan(ess) else f"{ess:.0f}"
            found.append(f"{kind} ESS is {told}, expected at least {least}: draw more")
    return "; ".join(found)


def _bfmi(energy: Any) -> np.ndarray | None:
    if energy is None:
        return None
    energy = np.asarray(energy, np.float64)
    moving = np.ptp(energy, axis=1) > 0
    out = np.full(len(energy), np.nan)
    if moving.any():
        out[moving] = array_stats.bfmi(energy[moving])
    return out
