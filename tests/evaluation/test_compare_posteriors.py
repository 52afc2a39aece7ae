"""`compare` against a posterior known in closed form, and where divergent draws lie.

w ~ N(0, I),  y ~ N(X w, 1/4):    w | y ~ N(S X'y / s^2, S),  S = (I + X'X / s^2)^-1
                                  log p(y) = log N(y; 0, X X' + s^2 I)
"""

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

import probgen as pg
from probgen import dist
from probgen.errors import DataError, DeclarationError, NonFiniteError, UnknownName
from probgen.evaluation.posteriors import FitThenDraw, PosteriorDifference, moments
from probgen.inference import (
    ELBO,
    SVI,
    AutoMultivariateNormal,
    AutoNormal,
    Guide,
    Langevin,
)

SCALE = 0.5
RNG = np.random.default_rng(0)
COVARIATES = (RNG.normal(size=(12, 2)) @ [[1.0, 0.9], [0.0, 0.5]]).astype(np.float32)
Y = (COVARIATES @ [1.0, -0.5] + SCALE * RNG.normal(size=12)).astype(np.float32)
PRECISION = np.eye(2) + COVARIATES.T @ COVARIATES / SCALE**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ COVARIATES.T @ Y / SCALE**2
SDS = np.sqrt(np.diag(COVARIANCE))
EVIDENCE = stats.multivariate_normal(
    np.zeros(12), COVARIATES @ COVARIATES.T + SCALE**2 * np.eye(12)
).logpdf(Y)


@pg.model
def regression(covariates):
    weights = pg.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(covariates @ weights, SCALE))


def by(guide):
    optimizer = pg.Adam(pg.CosineDecay(0.05, 800))
    return FitThenDraw(SVI(ELBO(), optimizer), Guide(500), guide=guide, num_steps=800)


METHODS = {
    "chains": Langevin(
        0.01, num_steps=1200, num_warmup=300, num_chains=4, metropolis=True, thinning=4
    ),
    "mean field": by(AutoNormal()),
    "full rank": by(AutoMultivariateNormal()),
    "no guide": Guide(100),
}


@pytest.fixture(scope="module")
def found(backend):
    return pg.compare(
        regression, {"y": Y}, METHODS, reference={"w": (MEAN, SDS)},
        inputs={"covariates": COVARIATES}, seed=0, backend=backend, progress_bar=False,
    )  # fmt: skip


def test_distances_are_those_to_the_exact_posterior(found):
    """Chains within their Monte Carlo error; the mean field too narrow by what its law says: its
    variances are the inverses of the precision's diagonal."""
    chains = found["chains"].difference
    assert (np.abs(chains.mean) < 4.5 * chains.mean_error).all()
    assert (np.abs(chains.sd_ratio - 1) < 4.5 * chains.sd_error).all()
    narrow = found["mean field"].difference
    expected = 1 / np.sqrt(np.diag(PRECISION)) / SDS
    assert (expected < 0.75).all()
    assert (np.abs(narrow.sd_ratio - expected) < 4.5 * narrow.sd_error + 0.03).all()
    assert found.differing("mean field")[1] == ["w[0]", "w[1]"]
    full = found["full rank"].difference
    assert (np.abs(full.sd_ratio - 1) < 4.5 * full.sd_error + 0.03).all()


def test_evidence_is_the_exact_one_and_the_bound_below(found):
    full, narrow = found["full rank"], found["mean field"]
    assert abs(full.log_evidence - EVIDENCE) < 4.5 * full.log_evidence_error + 1e-3
    # Of the mean field the gap is KL(q | p) = (log det P_diag - log det P) / 2, at its best.
    gap = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert abs(narrow.elbo + gap - EVIDENCE) < 4.5 * narrow.elbo_error + 0.02
    assert found["chains"].elbo is None


def test_what_failed_is_told_and_the_others_stand(found):
    assert "guide" in found["no guide"].failure
    said = repr(found)
    assert "no guide: failed." in said and "given numbers" in said
    assert "mean field: differs beyond Monte Carlo error" in said
    assert set(found.to_pandas()["method"]) == set(METHODS) - {"no guide"}
    with pytest.raises(UnknownName, match="did you mean 'chains'"):
        found["chain"]


def test_the_page_stands(found, tmp_path):
    page = found.save(tmp_path / "page.html").read_text()
    assert "Posteriors of regression" in page and "<svg" in page
    assert len(found.plot(["w[1]"]).axes[0].get_yticks()) == 1
    with pytest.raises(UnknownName, match="w\\[9\\]"):
        found.plot(["w[9]"])


def test_z_tests_hold_their_level_and_find_a_shift():
    rng = np.random.default_rng(3)
    reference = moments({"a": (np.zeros(50), np.ones(50))})
    draws = rng.normal(size=(4, 250, 50))
    level = PosteriorDifference.between(moments({"a": draws}), reference)
    assert min(level.p_mean.min(), level.p_sd.min()) > 0.01
    draws[..., 7] += 0.3
    draws[..., 9] *= 1.3
    off = PosteriorDifference.between(moments({"a": draws}), reference)
    assert np.flatnonzero(off.p_mean < 0.01).tolist() == [7] and off.worst_mean == 7
    assert np.flatnonzero(off.p_sd < 0.01).tolist() == [9] and off.worst_sd == 9


def test_the_error_of_an_sd_is_that_of_its_square():
    """x_t = phi x_{t-1} + noise: n (1 - phi) / (1 + phi) effective draws of the mean, n (1 - phi^2)
    / (1 + phi^2) of the square, and a relative error of the sd of (2 n_eff)^-1/2."""
    phi, shape = -0.5, (4, 5000)
    noise = np.random.default_rng(0).normal(size=shape)
    x = lfilter([1.0], [1.0, -phi], noise, axis=1)[:, 50:]
    found = moments({"x": x})
    n = x.size
    mean = (n * (1 - phi) / (1 + phi)) ** -0.5
    square = (2 * n * (1 - phi**2) / (1 + phi**2)) ** -0.5
    assert found.mean_error[0] / found.sd[0] == pytest.approx(mean, rel=0.15)
    assert found.sd_error[0] / found.sd[0] == pytest.approx(square, rel=0.15)


def test_what_does_not_fit_is_refused_before_anything_runs():
    chains = METHODS["chains"]
    for methods, error, words in [
        ({}, DeclarationError, "no method"),
        ({"svi": SVI(ELBO())}, DeclarationError, "FitThenDraw"),
    ]:
        with pytest.raises(error, match=words):
            pg.compare(regression, {"y": Y}, methods, seed=0)
    with pytest.raises(UnknownName, match="did you mean"):
        pg.compare(regression, {"y": Y}, {"chains": chains}, reference="chain", seed=0)
    with pytest.raises(NonFiniteError, match="sds above 0"):
        pg.compare(regression, {"y": Y}, [chains], reference={"w": (MEAN, 0 * SDS)}, seed=0)
    with pytest.raises(DataError, match="pairs"):
        pg.compare(regression, {"y": Y}, [chains], reference=3.0, seed=0)


def test_divergent_draws_are_located_by_the_scalar_that_tells_them():
    from arviz_base import from_dict

    rng = np.random.default_rng(2)
    tau, mu = np.exp(rng.normal(size=(2, 500))), rng.normal(size=(2, 500))
    draws = {"mu": mu, "tau": tau}
    tree = from_dict({"posterior": draws, "sample_stats": {"diverging": tau < 0.3}})
    found = pg.divergences(tree)
    assert found.names == ("tau", "mu") and found.distances[0] == 1.0
    assert found.medians[0, 1] < 0.3 < found.medians[0, 0]
    assert f"{(tau < 0.3).sum()} of 1000" in repr(found) and "tau (median" in repr(found)
    assert found.plot().axes[0].get_xscale() == "log"
    quiet = from_dict({"posterior": draws, "sample_stats": {"diverging": tau < 0}})
    assert repr(pg.divergences(quiet)) == "None of 1000 transitions diverged."
    with pytest.raises(DataError, match="diverging"):
        pg.divergences(draws)
