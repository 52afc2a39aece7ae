"""Simulation-based calibration: does the method draw from the posterior, over the whole prior?

Truths come from the prior, data from the model, draws from the method: then the rank of each truth
among its draws is uniform (see `uniformity`). A method whose draws are too narrow gives ranks that
pile up at both ends, a biased one at one end. Calibration holds on average over the prior; it does
not say that the method is right for one particular data set, nor that the model is right.

Source: Talts et al. 2018, arXiv:1804.06788; quantities that depend on the data: Modrak et al. 2023,
arXiv:2211.02383.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.fitted import AnyModel
from probgen.errors import NonFiniteError, ShapeError
from probgen.evaluation.calibration.methods import Method, sampler_of
from probgen.evaluation.calibration.ranked import SBC
from probgen.evaluation.calibration.study import (
    Round,
    Simulations,
    Study,
    Thinning,
    scalars,
)
from probgen.evaluation.calibration.thinning import lag_one, moves, thinning_from
from probgen.evaluation.calibration.uniformity import ranks
from probgen.inference.sample.guide import Guide
from probgen.language.declared import checked
from probgen.language.kinds import Inputs, Many, Names, OpenShare, TwoOrMore
from probgen.language.seeds import check_seed
from probgen.progress import bar

NUM_PILOTS = 10  # simulations that tell how far to thin


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
        sampler = sampler_of(study, method, num_draws, step)

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
        still=np.array([np.mean([not moves(r.draws[n]) for r in rounds]) for n in names]),
        alpha=alpha, seed=seed,
    )  # fmt: skip
