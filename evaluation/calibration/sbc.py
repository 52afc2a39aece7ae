"""Simulation-based calibration: does the method draw from the posterior, over the whole prior?

Truths come from the prior, data from the model, draws from the method: then the rank of each truth
among its draws is uniform (see `uniformity`). A method whose draws are too narrow gives ranks that
pile up at both ends, a biased one at one end. Calibration holds on average over the prior; it does
not say that the method is right for one particular data set, nor that the model is right.

Source: Talts et al. 2018, arXiv:1804.06788; quantities that depend on the data: Modrak et al. 2023,
arXiv:2211.02383.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from arviz_stats.base import array_stats
from scipy.stats import norm

from probgen.backends.protocol import Backend
from probgen.engine.fitted import AnyModel
from probgen.errors import DataError, NonFiniteError, ShapeError
from probgen.evaluation.calibration.study import (
    Method,
    Round,
    Simulations,
    Study,
    Thinning,
    scalars,
)
from probgen.evaluation.calibration.uniformity import chi_square, ecdf_test, envelope, ranks
from probgen.evaluation.detection.intervals import holm
from probgen.inference.sample.guide import Guide
from probgen.language.declared import argument, checked
from probgen.language.kinds import Inputs, Many, Names, OpenShare, TwoOrMore
from probgen.language.seeds import check_seed
from probgen.progress import bar

NUM_PILOTS = 10  # simulations that tell how far to thin
CORRELATED = 0.1  # mean lag-1 autocorrelation above which a rejection may be the chains' fault


@dataclasses.dataclass(frozen=True, repr=False)
class SBC:
    """Ranks of simulated truths, and what they say. Prints as a table.

    Attributes:
        names: of the quantities.
        ranks: [N, quantities] in 0 .. num_draws.
        num_draws: L.
        chi_square, ecdf: [quantities] p-values of the two tests of uniformity.
        thinning: every how many transitions a draw was kept.
        autocorrelation: [quantities] of successive kept draws, mean over simulations; correlated
            draws make ranks pile up at both ends although the method is right. NaN where no chain
            moves.
        alpha: chance of rejecting a right method, over all quantities and both tests together.
        seed: of the simulations.
        still: [quantities] share of the simulations in which a chain never moves.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    num_draws: int
    chi_square: np.ndarray
    ecdf: np.ndarray
    thinning: int
    autocorrelation: np.ndarray
    alpha: float
    seed: int
    still: np.ndarray

    @classmethod
    def from_ranks(
        cls,
        names: tuple[str, ...],
        values: np.ndarray,
        num_draws: int,
        *,
        thinning: int = 1,
        autocorrelation: np.ndarray | None = None,
        still: np.ndarray | None = None,
        alpha: float = 0.01,
        seed: int = 0,
    ) -> SBC:
        """Tests ranks [N, quantities] that were made elsewhere.

        Args:
            names, values: of the quantities, and their ranks.
            num_draws, thinning, autocorrelation, still, alpha, seed: as in the result; what is not
                known of the draws is NaN there.

        Raises:
            ShapeError: not two axes, other names than quantities, or fewer than 20 simulations.
            AlgorithmError: ranks outside 0 .. num_draws, DeclarationError: alpha outside (0, 1).
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(names) or not len(names):
            raise ShapeError(
                f"SBC: got ranks {values.shape} for {len(names)} quantities, expected "
                "[simulations, quantities]."
            )
        alpha = argument("SBC", OpenShare, alpha=alpha)
        band = envelope(max(len(values), 1), num_draws, seed=seed)
        columns = list(values.T)
        return cls(
            tuple(names), values, num_draws,
            np.array([chi_square(c, num_draws) for c in columns]),
            np.array([ecdf_test(c, num_draws, band) for c in columns]),
            thinning,
            np.full(len(names), np.nan) if autocorrelation is None else autocorrelation,
            alpha, seed,
            np.full(len(names), np.nan) if still is None else still,
        )  # fmt: skip

    @property
    def num_simulations(self) -> int:
        return len(self.ranks)

    @property
    def p_values(self) -> np.ndarray:
        """[quantities] of both tests together: twice the smaller one (Bonferroni)."""
        return np.minimum(1.0, 2.0 * np.minimum(self.chi_square, self.ecdf))

    @property
    def adjusted(self) -> np.ndarray:
        """[quantities] p-values corrected by Holm for the number of quantities."""
        return holm(self.p_values)

    @property
    def accepted(self) -> bool:
        """No quantity's ranks differ from uniform ones, at `alpha` over all."""
        return bool((self.adjusted > self.alpha).all())

    @property
    def rejected(self) -> tuple[str, ...]:
        """Names of the quantities whose ranks are not uniform."""
        flags = self.adjusted <= self.alpha
        return tuple(n for n, flag in zip(self.names, flags, strict=True) if flag)

    def shape(self, name: str) -> str:
        """How a quantity's ranks depart from uniform ones, in words."""
        scores = norm.ppf((np.arange(self.num_draws + 1) + 0.5) / (self.num_draws + 1))
        # Normal scores: draws of c times the sd, shifted by d sd, have mean -d / c and sd 1 / c.
        z = scores[self.ranks[:, self.names.index(name)].astype(np.int64)]
        centre = z.mean() * math.sqrt(len(z)) / max(z.std(), 1e-300)
        spread = (z.var() / np.mean(scores**2) - 1) / math.sqrt(2 / len(z))
        words = []
        if abs(centre) > 3:
            words.append(f"draws lie too {'low' if centre > 0 else 'high'}")
        if abs(spread) > 3:
            words.append(f"draws are too {'narrow' if spread > 0 else 'wide'}")
        return " and ".join(words) or "neither shifted nor too wide or narrow"

    def verdict(self) -> str:
        """What the ranks allow to be said, in a sentence or two."""
        size = f"{self.num_simulations} simulations, {self.num_draws} draws each"
        if self.accepted:
            return (
                f"No departure from the posterior was found at level {self.alpha:g} ({size}; "
                f"smallest corrected p-value {self.adjusted.min():.3g}).{self._stillness()}"
            )
        told = "; ".join(f"{n}: {self.shape(n)}" for n in self.rejected)
        text = f"The draws are not the posterior's, at level {self.alpha:g} ({size}): {told}."
        if np.nanmax(np.append(self.autocorrelation, -1.0)) > CORRELATED:
            text += (
                f" But successive draws are correlated ({np.nanmax(self.autocorrelation):.2f}), "
                "which alone makes ranks pile up at the ends: thin further."
            )
        return text + self._stillness()

    def _stillness(self) -> str:
        """Where chains never move, in words; "" where they all do."""
        share = np.nan_to_num(self.still)
        worst = [i for i in np.argsort(-share, kind="stable")[:3] if share[i] > 0]
        if not worst:
            return ""
        told = ", ".join(f"{self.names[i]} in {share[i]:.1%}" for i in worst)
        more = int((share > 0).sum()) - len(worst)
        return (
            f" Some chains never move ({told} of the simulations{f', and {more} more' * (more > 0)}"
            "): the sampler rejects everything there, or the quantity is no random one."
        )

    def to_pandas(self) -> Any:
        """One row a quantity."""
        import pandas as pd

        return pd.DataFrame(
            {
                "chi_square": self.chi_square, "ecdf": self.ecdf, "adjusted": self.adjusted,
                "rejected": self.adjusted <= self.alpha, "autocorrelation": self.autocorrelation,
                "still": self.still,
            },
            index=pd.Index(self.names, name="quantity"),
        )  # fmt: skip

    def __repr__(self) -> str:
        width = max(len("quantity"), *(len(n) for n in self.names))
        lines = [f"{'quantity':{width}}  {'chi-square p':>12}  {'ECDF p':>8}  {'Holm p':>8}"]
        order = np.argsort(self.adjusted, kind="stable")
        for i in order[:30]:
            mark = "  rejected" if self.adjusted[i] <= self.alpha else ""
            lines.append(
                f"{self.names[i]:{width}}  {self.chi_square[i]:12.4f}  {self.ecdf[i]:8.4f}  "
                f"{self.adjusted[i]:8.4f}{mark}"
            )
        if len(order) > 30:
            lines.append(f"... and {len(order) - 30} more with larger p-values")
        return "\n".join([*lines, self.verdict()])

    def plot(self, names: tuple[str, ...] | None = None) -> Any:
        """Figure of the ranks' distribution function minus the uniform one, with its band."""
        from probgen.evaluation.calibration.figures import ecdf_figure

        return ecdf_figure(self, names)


@checked
def sbc(
    model: AnyModel,
    method: Method,
    *,
    num_simulations: Simulations = 200,
    num_draws: TwoOrMore = 99,
    num_data: Many = 1,
    observed: Names = None,
    inputs: Inputs = None,
    quantities: Mapping[str, Callable] | None = None,
    thinning: Thinning = "auto",
    alpha: OpenShare = 0.01,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    progress_bar: bool = True,
) -> SBC:
    """Calibrates a method on data that the model itself simulates.

    Ranked are every scalar of every latent, the log likelihood and the log joint density.

    Args:
        model: a declaration, or a `Fitted` (whose parameters are held).
        method: `NUTS(...)` or `HMC(...)`, whose num_samples and thinning are set here, and by
            engine="probgen" the chains of up to 128 data sets move side by side; `Guide()`,
            the model's guide; or a function (data, num_draws, seed) -> {latent: [num_draws, ...]},
            such as one that fits a guide to these data and draws from it.
        num_simulations: N; the power grows with it (200 sees a gross fault, 1,000 a tenth of a
            standard deviation too narrow half of the time).
        num_draws: L; 99 gives ranks 0 .. 99, which 20 bins divide.
        num_data: rows of each simulated data set.
        observed: the sites that stand for data; None is ("x",).
        inputs: what the program conditions on; arrays of num_data rows have one row a datum.
        quantities: further functions (theta, data) -> number, of dicts of numpy arrays, by name.
        thinning: keep every so many transitions; "auto" learns it from the effective sample size
            of ten simulations.
        alpha: chance of rejecting a right method.
        seed: an integer.
        backend, device: as in `pg.infer`.

    Example:
        result = sbc(model, NUTS(num_warmup=150, num_chains=1), num_data=5, seed=0)

    Raises:
        MissingSeed: there is no seed.
        DeclarationError: an argument of the wrong kind or out of range.
        AlgorithmError: a density without prior draws, no latents, a discrete one for a sampler.
        UnknownName: an observed site that the model does not have.
        NonFiniteError: a draw that is NaN.
        DataError: thinning is to be learnt, and the chains never move.
    """
    seed = check_seed(seed, "sbc")
    study = Study(
        model, observed=observed, num_data=num_data, inputs=inputs, seed=seed, backend=backend,
        device=device, quantities=quantities,
    )  # fmt: skip
    base = study.backend.key(seed)
    children = np.random.SeedSequence(seed).generate_state(max(num_simulations, 1) + NUM_PILOTS)

    def prepare(step: int) -> Callable[[range], Iterator[Round]]:
        sampler = study.sampler(method, num_draws, step)

        def some(numbers: range) -> Iterator[Round]:
            seeds = [(study.backend.fold_in(base, i), int(children[i])) for i in numbers]
            return study.in_parts(sampler, seeds, num_draws)

        return some

    if isinstance(method, Guide):
        thinning = 1
    return _calibrate(prepare, num_simulations, num_draws, thinning, alpha, seed, progress_bar)


@checked
def sbc_from(
    prior: Callable,
    simulate: Callable,
    posterior_draws: Callable,
    *,
    quantities: Mapping[str, Callable] | None = None,
    num_simulations: Simulations = 200,
    num_draws: TwoOrMore = 99,
    thinning: Thinning = 1,
    alpha: OpenShare = 0.01,
    seed: int | None = None,
    progress_bar: bool = True,
) -> SBC:
    """Calibration of anything, from numpy callables.

    Args:
        prior: rng -> theta, a number, an array or a dict of them.
        simulate: (rng, theta) -> y, anything.
        posterior_draws: (rng, y, num_draws) -> draws, theta's shape with num_draws in front.
        quantities: functions (theta, y) -> number by name, beside theta's own scalars; give one
            that looks at the data, such as the log likelihood, or a method that returns the prior
            goes unseen.
        thinning: of the draws; "auto" where they are a Markov chain.
        num_simulations, num_draws, alpha, seed: as in `sbc`.

    Raises:
        MissingSeed: there is no seed.
        ShapeError: draws of another shape than theta's.
        NonFiniteError: a quantity that is NaN.
    """
    seed = check_seed(seed, "sbc_from")

    def named(value):
        return value if isinstance(value, Mapping) else {"theta": value}

    def prepare(step: int) -> Callable[[range], Iterator[Round]]:
        def one(i: int) -> Round:
            rng = np.random.default_rng([seed, i])
            theta = prior(rng)
            y = simulate(rng, theta)
            given = posterior_draws(rng, y, num_draws * step)
            truth = {n: np.asarray(v) for n, v in named(theta).items()}
            draws = {n: np.asarray(v) for n, v in named(given).items()}
            for name, value in truth.items():
                want = (num_draws * step, *value.shape)
                if name not in draws or draws[name].shape != want:
                    got = draws[name].shape if name in draws else f"only {sorted(draws)}"
                    raise ShapeError(f"sbc_from: got draws {got} of {name!r}, expected {want}.")
            kept = {n: draws[n][step - 1 :: step][None] for n in truth}
            known = {k: float(v) for k, v in scalars(truth, 0).items()}
            found = scalars(kept, 2)
            for name, fn in (quantities or {}).items():
                each = [{n: v[0, j] for n, v in kept.items()} for j in range(num_draws)]
                points = each if isinstance(theta, Mapping) else [e["theta"] for e in each]
                known[name] = float(fn(theta, y))
                found[name] = np.array([[float(fn(p, y)) for p in points]])
            return Round(known, found)

        return lambda numbers: map(one, numbers)

    return _calibrate(prepare, num_simulations, num_draws, thinning, alpha, seed, progress_bar)


def _calibrate(
    prepare: Callable, num_simulations: int, num_draws: int, thinning: Thinning, alpha: float,
    seed: int, progress_bar: bool,
) -> SBC:  # fmt: skip
    """Runs `prepare(thinning)` of the simulations' numbers and tests the ranks."""
    if thinning == "auto":
        pilot = prepare(1)
        # Simulations of their own: what chose the thinning is not what is tested.
        own = range(num_simulations, num_simulations + NUM_PILOTS)
        thinning = thinning_from([r.draws for r in pilot(own)])
    rounds = []
    with bar(num_simulations, wanted=progress_bar, unit="simulation") as shown:
        for found in prepare(thinning)(range(num_simulations)):
            rounds.append(found)
            shown(1)
    names = tuple(rounds[0].truth)
    truth = np.array([[r.truth[n] for n in names] for r in rounds])
    # Draws of several chains are taken in turn, so that what is left over misses no chain.
    draws = np.stack(
        [np.stack([r.draws[n].T.reshape(-1)[:num_draws] for n in names], -1) for r in rounds]
    )
    bad = [n for j, n in enumerate(names) if np.isnan(draws[..., j]).any() or
           np.isnan(truth[:, j]).any()]  # fmt: skip
    if bad:
        raise NonFiniteError(
            f"sbc: got NaN among draws or truths of {bad}, expected numbers; see in which "
            "simulation the method fails."
        )
    lags = [np.array([lag_one(r.draws[n]) for r in rounds]) for n in names]
    known = [each[~np.isnan(each)] for each in lags]
    return SBC.from_ranks(
        names, ranks(draws, truth, seed=seed), num_draws, thinning=thinning,
        autocorrelation=np.array([v.mean() if len(v) else np.nan for v in known]),
        still=np.array([np.mean([not _moves(r.draws[n]) for r in rounds]) for n in names]),
        alpha=alpha, seed=seed,
    )  # fmt: skip


def _moves(draws: np.ndarray) -> bool:
    """Whether every chain of draws [chain, draw] has two that differ (or only one draw)."""
    return draws.shape[1] < 2 or bool((np.ptp(draws, axis=1) > 0).all())


def thinning_from(pilots: list[dict[str, np.ndarray]]) -> int:
    """Every how many draws are nearly independent: the largest, over quantities, of the median
    autocorrelation time (number of draws over bulk effective sample size) of the pilots.

    A chain that never moves has no such time. Quantities for which that is so in half of the pilots
    or more are left to the others to decide (a discrete latent may be certain).

    Args:
        pilots: for each pilot, draws [chain, draw] by quantity.

    Raises:
        DataError: it is so for all of them. ShapeError: fewer than four draws a chain.
    """
    worst, told = 1.0, False
    for name in list(pilots[0])[:200]:
        draws = [np.asarray(p[name], np.float64) for p in pilots]
        if draws[0].shape[1] < 4:
            raise ShapeError(
                f"sbc: got {draws[0].shape[1]} draws a chain, expected at least 4 to learn the "
                "thinning from; use fewer chains, or give thinning=1."
            )
        times = [v.size / array_stats.ess(v, method="bulk") for v in draws if _moves(v)]
        if 2 * len(times) > len(draws):
            worst, told = max(worst, float(np.median(times))), True
    if not told:
        raise DataError(
            f"sbc: got chains that never move in at least half of {len(pilots)} pilot simulations, "
            "expected draws that differ, to learn the thinning from; the sampler rejects "
            "everything (look at its step size and warm-up), or give thinning=1."
        )
    # A time of 1.2 is within the error of one from so few draws.
    return max(1, math.ceil(worst - 0.25))


def lag_one(draws: np.ndarray) -> float:
    """Mean over chains of the autocorrelation of successive draws [chain, draw], bias removed.

    Over the chains that move; NaN, undefined, where none does, and with fewer than three draws.
    """
    draws = draws[np.ptp(draws, axis=1) > 0] if draws.shape[1] > 2 else draws[:0]
    if not len(draws):
        return math.nan
    centred = draws - draws.mean(axis=1, keepdims=True)
    power = (centred**2).sum(axis=1)
    found = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / power
    # Removing the chain's own mean costs an independent chain about 1 / n.
    return float(found.mean()) + 1.0 / draws.shape[1]
