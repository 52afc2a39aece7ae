"""The Laplace approximation: exact where the posterior is Gaussian, else by its formula by hand."""

import logging
import re

import numpy as np
import pytest
from auto_guide_cases import COV, MEAN, C, Y, regression
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DataError, DeclarationError
from probgen.inference import (
    ELBO,
    IWAE,
    SVI,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    Guide,
)

COUNTS = np.random.default_rng(0).poisson(3.0, 2000).astype("float32")
LAPLACE = AutoLaplaceApproximation()


def fitted_to(model, data, b, num_steps=300, size=None, **options):
    optimizer = pg.Adam(pg.CosineDecay(0.1, num_steps))
    return pg.fit(model, data, SVI(ELBO(), optimizer), num_steps=num_steps, batch_size=size, seed=0,
                  backend=b, progress_bar=False, **options)  # fmt: skip


def settled(model, data, b):
    """What a fit does at its end, here at the parameters that it starts from."""
    bound, params = bind(model.with_guide(LAPLACE), b, data=data, num_data=len(data["y"]))
    return LAPLACE.settled(bound, params, lambda: [data])


def distance(fitted):
    """From the optimum, in standard deviations, as the history says it."""
    return float(re.search(r"([\d.e+-]+) standard deviations", fitted.history.events[-1])[1])


def gaussian_of(fitted, names, before=0):
    """(mean, covariance) on the real line, read off the parameters of a full Gaussian guide; of
    latents of single data one a datum. `before`: (numbers, L) of the globals that they follow."""
    loc, rows, first = [], [], before
    for name in names:
        of = {k: fitted.params[f"guide/{name}/{k}"]["value"] for k in ("loc", "log_scale", "below")}
        size = of["loc"].shape[-1]
        assert of["below"].shape[-1] == first + size
        own = np.tril(of["below"], first - 1) + np.eye(size, first + size, first)
        rows.append(np.exp(of["log_scale"])[..., None] * own)
        loc.append(of["loc"])
        first += size
    wide = [np.concatenate([r, np.zeros((*r.shape[:-1], first - r.shape[-1]))], -1) for r in rows]
    tril = np.concatenate(wide, -2)
    if before:
        return np.concatenate(loc, -1), tril
    return np.concatenate(loc, -1), tril @ np.swapaxes(tril, -1, -2)


@pytest.mark.repeated("test_a_hierarchy_of_gaussians_has_its_whole_posterior")
def test_it_is_the_posterior_of_a_linear_gaussian_model(b, tmp_path):
    """Mean and covariance to 1e-3, and log p(y) from any of its draws."""
    fitted = fitted_to(regression.with_guide(LAPLACE), {"y": Y}, b, inputs={"c": C})
    mean, cov = gaussian_of(fitted, "ab")
    sd = np.sqrt(np.diag(COV))
    np.testing.assert_allclose(mean / sd, MEAN / sd, atol=1e-3)
    np.testing.assert_allclose(cov / np.outer(sd, sd), COV / np.outer(sd, sd), atol=1e-3)
    assert "all 20 data" in fitted.history.events[-1]
    fitted.save_pretrained(tmp_path / "fit")
    again = pg.Fitted.from_pretrained(tmp_path / "fit", model=fitted.model)
    draws = pg.infer(again, {"y": Y}, Guide(50), inputs={"c": C}, seed=1, progress_bar=False)
    evidence = stats.multivariate_normal(np.zeros(20), np.eye(20) + C @ C.T).logpdf(Y)
    np.testing.assert_allclose(draws.sample_stats["log_weight"].values, evidence, atol=5e-3)
    assert "posterior predictive" in pg.generate(fitted, 2, inputs={"c": C[:2]}, seed=0).note


def test_of_a_rate_it_is_the_formula_on_the_log_scale(b):
    """r ~ Gamma(2, 1), k_n ~ Poisson(r): u = log r has the log density (2 + K) u - (1 + N) e^u, so
    its mode is log((2 + K) / (1 + N)) and its curvature 2 + K. The data come in two pieces of
    unequal size."""

    @pg.model
    def rate():
        r = pg.sample("r", dist.Gamma(2.0, 1.0))
        with pg.data_plate():
            pg.sample("k", dist.Poisson(r))

    counts = COUNTS[:1300]
    fitted = fitted_to(rate.with_guide(LAPLACE), {"k": counts}, b, 200)
    mean, cov = gaussian_of(fitted, "r")
    assert distance(fitted) < 0.02 and "all 1300 data" in fitted.history.events[-1]
    total = counts.sum()
    sd = (2 + total) ** -0.5
    assert abs(mean[0] - np.log((2 + total) / (1 + len(counts)))) < 1e-2 * sd
    assert abs(cov[0, 0] / sd**2 - 1) < 1e-3
    # The metric is the log density at the mode over the number of data, Jacobian included.
    r = np.exp(mean[0])
    joint = stats.gamma(2).logpdf(r) + stats.poisson(r).logpmf(counts).sum() + mean[0]
    np.testing.assert_allclose(fitted.history["elbo"][-1], joint / len(counts), rtol=1e-5)


def test_a_hierarchy_of_gaussians_has_its_whole_posterior(b, tmp_path):
    """m ~ N(0, I_2), v_n ~ N(m_1, 1), z_n ~ N(A m + v_n, I_2), y_n ~ N(z_n, 1): the covariance of
    all 2 + 3 N numbers, and log p(y) from any draw of q(m) prod q(v_n, z_n | m)."""
    a = np.float32([[1.0, 0.5], [-0.5, 1.0]])

    @pg.model
    def hierarchy():
        m = pg.sample("m", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        loc = ops.sum(ops.asarray(a) * m[..., None, :], axis=-1)
        with pg.data_plate():
            v = pg.sample("v", dist.Normal(m[..., 0], 1.0))
            z = pg.sample("z", dist.Normal(loc + v[..., None], 1.0).to_event(1))
            pg.sample("y", dist.Normal(z, 1.0).to_event(1))

    n = 6
    y = np.random.default_rng(0).normal(1.0, 1.5, (n, 2)).astype("float32")
    fitted = fitted_to(hierarchy.with_guide(LAPLACE), {"y": y}, b, 300)
    assert fitted.model.guide == AutoMultivariateNormal(conditional=True)
    mean, cov = gaussian_of(fitted, "m")
    own, rows = gaussian_of(fitted, "vz", before=2)
    tril = np.zeros((2 + 3 * n,) * 2)
    tril[:2, :2] = np.linalg.cholesky(cov)
    # Each site less its mean given those before it, which are independent: of m, (v, z)_n.
    less = np.eye(2 + 3 * n)
    for i in range(n):
        at = np.arange(3) + 2 + 3 * i
        tril[at, :2], tril[at[0] : at[2] + 1, at] = rows[i, :, :2], rows[i, :, 2:]
        less[at[0], 0], less[at[1:], :2], less[at[1:], at[0]] = -1.0, -a, -1.0
    seen = np.tile([False, True, True], n)
    whole = np.linalg.inv(less.T @ less + np.diag(np.r_[0.0, 0.0, seen]))
    np.testing.assert_allclose(tril @ tril.T, whole, atol=2e-3)
    pull = np.zeros(2 + 3 * n)
    pull[2:][seen] = y.ravel()
    np.testing.assert_allclose(np.concatenate([mean, own.ravel()]), whole @ pull, atol=1e-2)
    fitted.save_pretrained(tmp_path / "fit")
    again = pg.Fitted.from_pretrained(tmp_path / "fit", model=fitted.model)
    draws = pg.infer(again, {"y": y}, Guide(50), inputs={"row": np.arange(n)}, seed=1,
                     progress_bar=False)  # fmt: skip
    law = np.linalg.inv(less.T @ less)[2:, 2:][np.ix_(seen, seen)] + np.eye(2 * n)
    evidence = stats.multivariate_normal(np.zeros(2 * n), law).logpdf(y.ravel())
    np.testing.assert_allclose(draws.sample_stats["log_weight"].values, evidence, atol=0.02)


def test_latents_of_single_data_have_the_curvature_by_differences(b):
    """v ~ N(0, 1), r ~ LogNormal(v / 2, 0.5), k ~ Poisson(r): the inverse of each datum's curvature
    by (v, log r), in float64; the data come in two pieces, fitted by minibatches."""

    @pg.model
    def rates():
        with pg.data_plate():
            v = pg.sample("v", dist.Normal(0.0, 1.0))
            pg.sample("k", dist.Poisson(pg.sample("r", dist.LogNormal(0.5 * v, 0.5))))

    counts = COUNTS
    fitted = fitted_to(rates.with_guide(LAPLACE), {"k": counts}, b, 200, size=500)
    assert fitted.model.guide == AutoMultivariateNormal()
    mean, cov = gaussian_of(fitted, "vr")
    v, u = mean.T.astype("float64")

    def log_density(v, u):
        return -0.5 * v**2 + stats.norm(0.5 * v, 0.5).logpdf(u) + counts * u - np.exp(u)

    h = 1e-4
    f = [[log_density(v + p * h, u + q * h) for q in (-1, 0, 1)] for p in (-1, 0, 1)]
    second = np.array([
        [f[2][1] - 2 * f[1][1] + f[0][1], (f[2][2] - f[2][0] - f[0][2] + f[0][0]) / 4],
        [(f[2][2] - f[2][0] - f[0][2] + f[0][0]) / 4, f[1][2] - 2 * f[1][1] + f[1][0]],
    ]) / h**2  # fmt: skip
    np.testing.assert_allclose(cov, np.linalg.inv(-second.transpose(2, 0, 1)), rtol=1e-3)
    slope = np.stack([f[2][1] - f[0][1], f[1][2] - f[1][0]], -1) / (2 * h)
    far = np.sqrt(np.einsum("ni,nij,nj->n", slope, cov, slope)).max()
    assert distance(fitted) == pytest.approx(far, rel=0.1, abs=1e-3) and far < 0.1
    assert "all 2000 data" in fitted.history.events[-1]


# What data seen once are to `fit` and `evaluate` is `test_observed_once`'s.
@pytest.mark.repeated("test_a_support_that_depends_on_another_latent")
def test_one_observed_vector_in_constrained_latents_of_a_plate(b):
    """Of the GP-like model without rows, whose latents stand in a plate: Laplace's log p(y), which
    is exact as far as the posterior is Gaussian, against the importance-weighted one."""

    @pg.model
    def scales():
        with pg.plate("groups", 2):
            s = pg.sample("s", dist.LogNormal(0.0, 0.3))
        m = pg.sample("m", dist.Normal(0.0, 1.0))
        pg.sample("y", dist.Normal(m, s[0] + s[1]).expand([60]).to_event(1))

    y = stats.norm(0.5, 2.0).ppf((np.arange(60) + 0.5) / 60).astype("float32")
    fitted = fitted_to(scales.with_guide(LAPLACE), {"y": y}, b, 200)
    mean, cov = gaussian_of(fitted, "sm")
    table = pg.evaluate(fitted, {"y": y}, [IWAE(400)], seed=0, progress_bar=False)["IWAE(400)"]
    s, m = np.exp(mean[:2]), mean[2]
    joint = (
        stats.norm(m, s.sum()).logpdf(y).sum()
        + stats.norm(0, 0.3).logpdf(mean[:2]).sum() + stats.norm(0, 1).logpdf(m)
    )  # fmt: skip
    by_hand = joint + 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    assert abs(table["estimate"].values[0] - by_hand) < 0.1
    assert abs(mean[0] - mean[1]) < 1e-3 and cov[0, 1] < 0


def test_a_support_that_depends_on_another_latent(b):
    """s ~ LogNormal, u ~ Uniform(0, s): the mode and curvature by differences of the density on the
    line; and the weight of each of fifty draws, run side by side as in the fit's report."""

    @pg.model
    def within():
        s = pg.sample("s", dist.LogNormal(0.0, 0.5))
        u = pg.sample("u", dist.Uniform(0.0, s))
        with pg.data_plate():
            pg.sample("y", dist.Normal(u, 1.0 + s))

    def log_density(
        v, w
    ):  # of s = e^v, u = s / (1 + e^-w): log p(y, s, u) + v + log u + log(1-u/s)
        s, share = np.exp(v), 1 / (1 + np.exp(-w))
        log_y = sum(stats.norm(s * share, 1.0 + s).logpdf(y) for y in Y)
        return stats.norm(0.0, 0.5).logpdf(v) + np.log(share * (1 - share)) + log_y

    fitted = fitted_to(within.with_guide(LAPLACE), {"y": Y}, b, 150)
    mean, cov = gaussian_of(fitted, "su")
    eye, h = 1e-4 * np.eye(2), 1e-4

    def second(i, j):
        f = [[log_density(*(mean + p * eye[i] + q * eye[j])) for q in (-1, 1)] for p in (-1, 1)]
        return (f[1][1] - f[1][0] - f[0][1] + f[0][0]) / (4 * h * h)

    curvature = -np.array([[second(i, j) for j in range(2)] for i in range(2)])
    np.testing.assert_allclose(cov, np.linalg.inv(curvature), rtol=5e-3)
    draws = pg.infer(fitted, {"y": Y}, Guide(50), seed=0, progress_bar=False)
    top, low = (draws.posterior[n].values.ravel().astype("float64") for n in "su")
    v, w = np.log(top), np.log(low / (top - low))
    log_q = stats.multivariate_normal(mean, cov).logpdf(np.stack([v, w], axis=1))
    found = draws.sample_stats["log_weight"].values.ravel()
    np.testing.assert_allclose(found, log_density(v, w) - log_q, atol=5e-3)


def test_what_has_no_laplace_approximation_is_refused_in_words(b, caplog):
    @pg.model
    def free():  # y tells a + c alone
        a = pg.sample("a", dist.ImproperUniform("real", ()))
        c = pg.sample("c", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("y", dist.Normal(0.0 * a + c, 1.0))

    @pg.model
    def local():
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.sample("z", dist.Normal(0, 1)), 1.0))

    @pg.model
    def saddle(c):  # between two modes where the datum's own c is large
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
            pg.sample("y", dist.Normal(c * z * z, 1.0))

    @pg.model
    def late():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
        m = pg.sample("m", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("y", dist.Normal(z + m, 1.0))

    @pg.model
    def nothing():
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.net("m", nets.Parameter())(), 1.0))

    with pytest.raises(AlgorithmError, match=r"observe all of \['y'\] .* expected latents"):
        fitted_to(nothing.with_guide(LAPLACE), {"y": Y}, b, 1)
    with pytest.raises(AlgorithmError, match=r"not positive definite \(.*'a'\)"):
        settled(free, {"y": Y}, b)
    with pytest.raises(AlgorithmError, match=r"-log p of datum 1 .* definite \(.*along latent 'z'"):
        data = {"y": np.float32([1.0, 2.0]), "c": np.float32([0.1, 3.0]), "row": np.arange(2)}
        settled(saddle, data, b)
    with pytest.raises(AlgorithmError, match=r"'late' draws 'm', .* after \['z'\], one a datum"):
        fitted_to(late.with_guide(LAPLACE), {"y": Y}, b, 1)
    with pytest.raises(AlgorithmError, match=r"2 of the data have the row 0, expected each"):
        data = {"y": Y, "row": np.maximum(np.arange(20) - 1, 0)}
        settled(local, data, b)
    with pytest.raises(DataError, match="got a stream"):
        fitted_to(regression.with_guide(LAPLACE), iter([{"y": Y, "c": C}]), b, 1, size=None)
    params = {f"guide/{n}/loc": {"value": np.zeros(1, "float32")} for n in "ab"}
    point = pg.Fitted(regression.with_guide(LAPLACE), params)
    with pytest.raises(AlgorithmError, match="a point without a covariance"):
        pg.infer(point, {"y": Y}, Guide(5), inputs={"c": C}, seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="a point without a covariance"):
        pg.evaluate(point, {"y": Y}, [ELBO()], inputs={"c": C}, seed=0, backend=b)
    with pytest.raises(DeclarationError, match="got the class AutoNormal"):
        regression.with_guide(AutoNormal)
    with caplog.at_level(logging.WARNING, "probgen"):
        data = {"y": Y, "c": C}
        fitted = fitted_to(regression.with_guide(LAPLACE), data, b, 1, validation=data)
    assert "Fit longer" in caplog.text
    off = gaussian_of(fitted, "ab")[0] - MEAN
    assert distance(fitted) == pytest.approx(np.sqrt(off @ np.linalg.solve(COV, off)), rel=0.06)
    with pytest.raises(AlgorithmError, match=r"has a q of \['z'\] .* none for held-out ones"):
        fitted_to(local.with_guide(AutoNormal()), {"y": Y}, b, 1, validation={"y": Y})
