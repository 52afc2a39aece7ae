"""Diagnostics of chains agree with ArviZ and with formulas; predictive checks with closed forms."""

import arviz_stats
import numpy as np
import pytest
from arviz_base import from_dict
from scipy import stats

import probgen as pg
from probgen import dist
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    MissingSeed,
    NonFiniteError,
    ShapeError,
)
from probgen.evaluation.calibration import diagnose, posterior_predictive, predictive_check
from probgen.inference import Langevin


def ar1(phi, shape, seed=0):
    """Stationary AR(1) chains of variance one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    for t in range(1, shape[-1]):
        x[..., t] = phi * x[..., t - 1] + np.sqrt(1 - phi**2) * x[..., t]
    return x


CHAINS = {
    "white": np.random.default_rng(1).normal(size=(4, 500)),
    "slow": ar1(0.9, (4, 500)),
    "apart": ar1(0.5, (4, 500)) + np.arange(4)[:, None],
    "unlike scales": np.random.default_rng(2).normal(size=(3, 501)) * np.array([[1], [1], [4]]),
    "heavy": np.random.default_rng(3).standard_cauchy(size=(2, 400)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_column_is_arvizs(name):
    x = CHAINS[name]
    ours = diagnose({"x": x}).to_pandas().loc["x"]
    tree = from_dict({"posterior": {"x": x}})
    known = {
        "rhat": arviz_stats.rhat(tree), "ess_bulk": arviz_stats.ess(tree, method="bulk"),
        "ess_tail": arviz_stats.ess(tree, method="tail", prob=(0.05, 0.95)),
        "mcse_mean": arviz_stats.mcse(tree, method="mean"),
        "mcse_q5": arviz_stats.mcse(tree, method="quantile", prob=0.05),
        "mcse_q95": arviz_stats.mcse(tree, method="quantile", prob=0.95),
    }  # fmt: skip
    for column, value in known.items():
        value = float(value["posterior"]["x"] if "posterior" in value else value["x"])
        assert ours[column] == pytest.approx(value, rel=1e-6), column
    assert ours["mean"] == pytest.approx(x.mean()) and ours["sd"] == pytest.approx(x.std(ddof=1))


@pytest.mark.parametrize("name", CHAINS)
def test_r_hat_is_the_papers_formula(name):
    """Vehtari et al. 2021, equations (3) and (14), and folding, written out."""

    def split_rhat(z):
        n = z.shape[1]
        within, between = z.var(1, ddof=1).mean(), n * z.mean(1).var(ddof=1)
        return np.sqrt(((n - 1) / n * within + between / n) / within)

    def scores(v):
        return stats.norm.ppf((stats.rankdata(v).reshape(v.shape) - 0.375) / (v.size + 0.25))

    x = CHAINS[name]
    half = x.shape[1] // 2
    split = np.concatenate([x[:, :half], x[:, -half:]])
    folded = abs(split - np.median(split))
    expected = max(split_rhat(scores(split)), split_rhat(scores(folded)))
    assert diagnose(x).column("rhat")[0] == pytest.approx(expected, rel=1e-9)


def test_r_hat_sees_chains_that_differ_in_scale_alone():
    found = diagnose({"x": CHAINS["unlike scales"]})
    assert found.column("rhat")[0] > 1.1 and "chains disagree" in found.verdict()


def test_the_effective_sample_size_of_an_autoregression():
    """N (1 - phi) / (1 + phi), within 15 %."""
    x = ar1(0.9, (4, 20_000), seed=4)
    found = diagnose(x)
    expected = x.size * 0.1 / 1.9
    assert found.column("ess_bulk")[0] == pytest.approx(expected, rel=0.15)
    assert found.column("mcse_mean")[0] == pytest.approx(1 / np.sqrt(expected), rel=0.1)
    assert found.is_good and "Nothing speaks against" in repr(found)


def test_a_constant_chain_has_no_r_hat_and_is_said_so():
    moving = np.random.default_rng(5).normal(size=(4, 300))
    one_stuck = moving.copy()
    one_stuck[2] = 0.3
    found = diagnose(
        {
            "still": np.full((4, 300), 2.0), "stuck": np.repeat(np.arange(4.0)[:, None], 300, 1),
            "one": one_stuck, "fine": moving,
        }
    )  # fmt: skip
    rhat = dict(zip(found.names, found.column("rhat"), strict=True))
    assert np.isnan(rhat["still"]) and np.isnan(rhat["stuck"]) and rhat["one"] > 1.01
    for column in ("ess_bulk", "ess_tail", "mcse_mean", "mcse_q95"):
        assert np.isnan(found.column(column)[:2]).all()
    problems = dict(zip(found.names, found.problems, strict=True))
    assert "no chain ever moves" in problems["still"] and "no chain ever moves" in problems["stuck"]
    assert problems["one"].startswith("chain 2 never moved") and not problems["fine"]
    text = repr(found)
    assert "undefined" in text and "Do not trust" in text
    assert not found.is_good


def test_half_a_chain_without_movement_is_no_warning_but_a_problem():
    x = np.random.default_rng(6).normal(size=(2, 200))
    x[:, :100] = x[:, :1]
    x[1, 100:] = x[1, 100]
    assert not diagnose(x).is_good


def test_one_chain_has_no_r_hat():
    found = diagnose(np.random.default_rng(7).normal(size=(1, 2000)))
    assert np.isnan(found.column("rhat")[0]) and "one chain" in found.verdict()
    assert found.column("ess_bulk")[0] > 1000


def test_divergences_trees_and_energies_are_reported():
    rng = np.random.default_rng(8)
    energy = ar1(0.98, (4, 500)).cumsum(1)  # changes little from one transition to the next
    flags = np.zeros((4, 500), bool)
    flags[0, :3] = True
    tree = from_dict(
        {
            "posterior": {"x": rng.normal(size=(4, 500))},
            "sample_stats": {
                "diverging": flags, "energy": energy, "reached_max_treedepth": flags[::-1],
            },
        }
    )  # fmt: skip
    found = diagnose(tree)
    assert found.divergences == 3 and found.reached_max_treedepth == 3 and not found.is_good
    known = (np.diff(energy) ** 2).mean(1) / energy.var(1)
    np.testing.assert_allclose(found.bfmi, known, rtol=0.01)
    assert "3 transitions diverged" in found.verdict() and "E-BFMI" in found.verdict()
    assert not any(found.problems)


@pytest.mark.parametrize(
    ("draws", "kind", "words"),
    [
        (np.zeros(5), ShapeError, "v\\[None\\]"),
        (np.zeros((2, 3)), ShapeError, "at least 4"),
        ({"a": np.zeros((2, 9)), "b": np.zeros((3, 9))}, ShapeError, "same"),
        (np.full((2, 9), np.nan), NonFiniteError, "18 draws"),
        (np.full((2, 9), "a"), DataError, "numbers"),
        ({}, DataError, "no draws"),
    ],
)
def test_what_are_no_chains_is_refused(draws, kind, words):
    with pytest.raises(kind, match=words):
        diagnose(draws)


# ---- predictive checks


@pg.model
def normal():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu[0], 1.0))


def posterior_of(y, rng, shape=(2, 250)):
    mean, var = y.sum() / (len(y) + 1), 1 / (len(y) + 1)
    return {"mu": (mean + np.sqrt(var) * rng.normal(size=shape))[..., None]}


def test_replicated_data_have_the_posterior_predictive_law(b):
    """x_i ~ N(m, 1 + v) with covariance v between data of one draw; so is p of the mean."""
    rng = np.random.default_rng(9)
    y = rng.normal(0.5, size=8).astype(np.float32)
    mean, var = y.sum() / 9, 1 / 9
    found, latents = posterior_predictive(
        normal, posterior_of(y, rng), y, num_draws=None, seed=0, backend=b
    )
    x = found["x"].reshape(-1, 8).astype(np.float64)
    assert found["x"].shape == (2, 250, 8) and latents["mu"].shape == (2, 250, 1)
    assert abs(x.mean() - mean) < 5 * np.sqrt((var + 1 / 8) / 500)
    of_means = (x.mean(1) - mean) ** 2  # 1 / 8 + var; (1 + var) / 8 if data were independent
    assert abs(of_means.mean() - var - 1 / 8) < 5 * of_means.std() / np.sqrt(500)
    square = (x[:, 3] - mean) ** 2
    assert abs(square.mean() - 1 - var) < 5 * square.std() / np.sqrt(500)
    check = predictive_check(normal, posterior_of(y, rng), y, num_draws=500, seed=1, backend=b)
    assert check.names == ("mean", "sd", "min", "max")
    p = stats.norm.sf((y.mean() - mean) / np.sqrt(var + 1 / 8))
    assert abs(check.p_values[0] - p) < 5 * check.errors[0]
    # Independent draws: the error is the binomial one.
    assert check.errors[0] == pytest.approx(np.sqrt(p * (1 - p) / 500), rel=0.25)


def test_outliers_that_the_model_cannot_make_are_seen(b):
    rng = np.random.default_rng(10)
    y = np.concatenate([rng.normal(size=20), [9.0]]).astype(np.float32)

    def chi_square(y, theta):
        return ((y - theta["mu"]) ** 2).sum()

    check = predictive_check(
        normal, posterior_of(y, rng, (2, 200)), y, seed=0, backend=b,
        statistics={"max": np.max, "median": np.median, "chi-square": chi_square},
    )  # fmt: skip
    largest, median, misfit = check.p_values
    assert largest < 0.01 and misfit < 0.01 and 0.02 < median < 0.98
    assert "unlike the data" in repr(check) and check.errors.min() > 0
    assert np.ptp(check.observed[..., 2]) > 0  # the discrepancy moves with the draw
    assert len(check.plot().axes) == 3


def test_infers_draws_are_read_and_many_are_thinned(b):
    y = np.random.default_rng(11).normal(size=6).astype(np.float32)
    method = Langevin(0.1, num_steps=200, num_warmup=100, num_chains=2, metropolis=True)
    draws = pg.infer(normal, y, method, seed=0, backend=b, progress_bar=False)
    check = predictive_check(normal, draws, y, num_draws=100, seed=0, backend=b)
    assert check.replicated.shape == (2, 50, 4) and check.p_values[0] == pytest.approx(0.5, abs=0.3)
    assert list(diagnose(draws).names) == ["mu"]


GOOD = {"mu": np.zeros((2, 9, 1), np.float32)}
Y = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("draws", "options", "kind", "words"),
    [
        (GOOD, {"seed": None}, MissingSeed, "no seed"),
        ({"nu": GOOD["mu"]}, {}, DataError, "latent 'mu'"),
        (np.zeros(3), {}, DataError, "what pg.infer returns"),
        ({"mu": np.zeros(3)}, {}, ShapeError, "chain, draw"),
        (GOOD, {"statistics": {}}, AlgorithmError, "no statistics"),
        (GOOD, {"statistics": {"t": 3}}, DeclarationError, "entry a function"),
        (GOOD, {"statistics": {"t": lambda a, b, c: 0}}, AlgorithmError, "3 arguments"),
        (GOOD, {"statistics": {"t": lambda y: np.nan}}, NonFiniteError, "'t'"),
        (GOOD, {"num_draws": 0}, DeclarationError, "num_draws=0"),
        ({"mu": np.full((1, 4, 1), np.nan)}, {}, NonFiniteError, "replicated 'x'"),
    ],
)
def test_what_cannot_be_checked_is_refused(draws, options, kind, words):
    pytest.importorskip("jax")
    with pytest.raises(kind, match=words):
        predictive_check(normal, draws, Y, **{"seed": 0, "backend": "jax", **options})
