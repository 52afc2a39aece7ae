"""Exponential tilting of generators: exact checks A to F of its sheet, on both backends.

A linear flow with a quadratic energy is Gaussian; of a bent flow everything is known by quadrature;
of a linear-Gaussian VAE the three variants (decoder means, samples, prior) have one-dimensional
truths, values and gradients.
"""

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once
from fit_cases import assert_same_bits
from tilt_cases import (
    ENERGY,
    LINEAR,
    SHIFT,
    A,
    Features,
    Quadratic,
    energy,
    linear_flow,
    log_z,
    objective,
    tilted_flow,
    tilted_vae,
)

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, ShapeError
from probgen.evaluation.samples import mmd_test
from probgen.inference import (
    HMC,
    IWAE,
    EnergyGuard,
    EnergyLogLikelihood,
    ImportanceSampling,
    Langevin,
    MaximumLikelihood,
    Quadrature,
    UnnormalizedLogDensity,
    log_partition,
)
from probgen.inference.learn.contrast import Contrast
from probgen.models import EBM, Coupling, Flow, Tilted

MALA = Langevin(0.2, num_steps=30, metropolis=True)
THETA = np.array([0.4, 0.3, -0.5])


def test_a_quadratic_tilt_of_a_linear_flow_is_gaussian(b):
    """A: precision S^-1 + Q; log Z by importance sampling and by quadrature is the closed form."""
    q, c = np.array([[0.8, 0.3], [0.3, 0.5]]), np.array([0.7, -0.6])
    params = {"energy": {"q": np.float32(q), "c": np.float32(c)}}
    fitted = pg.Fitted(Tilted(linear_flow, Quadratic()), params, shapes={"x": (2,)})
    s = (A @ A.T).astype(np.float64)
    precision = np.linalg.inv(s) + q
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.linalg.solve(s, SHIFT) + q @ c)
    both = s + np.linalg.inv(q)
    want = st.multivariate_normal(c, both).logpdf(SHIFT) + 0.5 * np.log(
        np.linalg.det(2 * np.pi * np.linalg.inv(q))
    )
    sampled = log_partition(fitted, ImportanceSampling(50_000), seed=0, backend=b)
    assert abs(sampled.estimate - want) < 0.01 and sampled.standard_error < 0.01
    assert sampled.lower_bound < want < sampled.upper_bound
    exact = log_partition(fitted, Quadrature(101), seed=0, backend=b)
    assert abs(exact.estimate - want) < exact.standard_error < 1e-5
    draws = pg.generate(
        fitted, 20_000, method=MALA, space="noise", chunk_size=20_000, seed=0, backend=b
    )["x"]
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.03 * scale.min())
    np.testing.assert_allclose(
        np.cov(draws.T) / np.outer(scale, scale), covariance / np.outer(scale, scale), atol=0.03
    )


@pytest.fixture(scope="module")
def exact(b):
    """log Z of the tilted flow by quadrature in noise space."""
    return log_partition(tilted_flow(), Quadrature(201), seed=0, backend=b)


@pytest.mark.repeated("test_a_quadratic_tilt_of_a_linear_flow_is_gaussian")
def test_a_tilted_flow_integrates_to_one(b, exact):
    """B: quadrature in noise space, importance sampling, and a sum over a grid of data agree."""
    sampled = log_partition(tilted_flow(), ImportanceSampling(50_000), seed=0, backend=b)
    assert abs(sampled.estimate - exact.estimate) < 0.01
    axis = np.linspace(-14, 14, 281, dtype=np.float32)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    measure = EnergyLogLikelihood(exact)
    table = pg.evaluate(
        tilted_flow(), x, [measure], seed=0, backend=b, progress_bar=False, chunk_size=len(x)
    )[measure.name]
    total = np.exp(table["estimate"].values).sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1.0) < 5e-3
    np.testing.assert_allclose(table["standard_error"], exact.standard_error)
    assert (table["lower_bound"] < table["upper_bound"]).all()


def test_no_energy_is_the_base_and_a_steep_one_collapses(b, exact):
    """C: a constant energy changes nothing; of one far from its base no weights are believed."""
    flat = tilted_flow(scale=0.0, offset=0.7)
    found = log_partition(flat, ImportanceSampling(50_000), seed=0, backend=b)
    assert found.estimate == pytest.approx(-0.7, abs=1e-6) and found.standard_error < 1e-6
    assert found.effective_share == pytest.approx(1.0) and not found.warnings
    with pytest.warns(UserWarning, match=r"weights have collapsed.*use AIS\(\)"):
        steep = log_partition(
            tilted_flow(scale=60.0), ImportanceSampling(50_000), seed=0, backend=b
        )
    assert steep.effective_share < 1e-3 and "collapsed" in repr(steep)
    assert exact.upper_bound - exact.lower_bound < 1e-3 and "nats" in repr(exact)
    x = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    known, up_to = EnergyLogLikelihood(found), UnnormalizedLogDensity()
    table = pg.evaluate(flat, x, [known, up_to], seed=0, backend=b, progress_bar=False)
    known, up_to = (table[m.name]["estimate"].values for m in (known, up_to))
    np.testing.assert_allclose(known, up_to + 0.7, atol=1e-4)  # the flow's own log density
    bound, params = flat.bind(b, {"x": x})
    look = EnergyGuard(gain_draws=50).held_out(Contrast(bound, "noise"))
    found = at_once(b, lambda *given: look(bound, *given), params, {"x": b.asarray(x)}, b.key(0))
    assert abs(float(found["gain"])) < 1e-6 and float(found["importance_share"]) > 1 - 1e-6


@pytest.mark.repeated("test_a_quadratic_tilt_of_a_linear_flow_is_gaussian")
def test_chains_without_energy_keep_the_base(b):
    """C: by a two-sample test."""
    flat = tilted_flow(scale=0.0, offset=0.7)
    chain = HMC(num_steps=3, step_size=0.5, num_warmup=0, num_samples=3, adapt_step_size=False)
    moved = pg.generate(flat, 1000, method=chain, space="noise", seed=0, backend=b)["x"]
    drawn = pg.generate(flat.model.base, 1000, seed=1, backend=b)["x"]
    assert mmd_test(drawn, moved, num_permutations=200).details["p_value"] > 0.005


# Both are held to a closed form where there is one: weights by log Z, chains by their moments.
@pytest.mark.repeated("test_a_quadratic_tilt_of_a_linear_flow_is_gaussian")
def test_resampled_latents_and_chains_have_one_pushforward(b):
    """D: importance resampling of base draws and HMC in noise, in eight sectors."""
    fitted = tilted_flow()
    base = pg.generate(fitted.model.base, 40_000, chunk_size=40_000, seed=0, backend=b)["x"]
    w = np.exp(-energy(base))
    kernel = HMC(num_steps=4, num_warmup=15, num_samples=1)
    ends = pg.generate(fitted, 6000, method=kernel, chunk_size=6000, seed=1, backend=b)["x"]
    middle = np.average(base, axis=0, weights=w)
    edges = np.linspace(-np.pi, np.pi, 9)
    sectors = [
        np.histogram(np.arctan2(*(x - middle).T), edges, weights=v)[0] / v.sum()
        for x, v in ((base, w), (ends, np.ones(len(ends))))
    ]
    assert 0.5 * np.abs(np.subtract(*sectors)).sum() < 0.04
    plain = np.histogram(np.arctan2(*(base - middle).T), edges)[0] / len(base)
    assert 0.5 * np.abs(plain - sectors[0]).sum() > 0.06  # that the tilt is seen


def test_the_density_of_a_flow_is_not_taken_to_read_the_energy(b):
    """Its draws and its inverse differ by a rounding; a fit over it binds all the same."""
    x = np.zeros((4, 2), np.float32)
    flow = Flow(2, Coupling(nets.MLP((4,))), num_layers=2)
    base = b.tree_map(b.to_numpy, bind(flow, b, data={"x": x}, seed=0)[1])
    bound, params = bind(Tilted(pg.Fitted(flow, base), ENERGY), b, data={"x": x}, seed=0)
    contrast = Contrast(bound, "noise")
    contrast.settle(params, {"x": b.asarray(x)}, b.key(0))
    assert contrast.left == ("x",) and not contrast.reads_latents


# Means have the weighted draws of the prior's case.
KINDS = ["sample", "z", pytest.param("mean", marks=pytest.mark.repeated(
    "test_the_learning_rule_is_the_gradient_of_the_likelihood"
))]  # fmt: skip
VARIANTS = {"mean": {"through": "mean"}, "sample": {}, "z": {"on": "z"}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_learning_rule_is_the_gradient_of_the_likelihood(b, kind):
    """E and F: one step of SGD is that of finite differences, and nothing else moves; by chains for
    samples, by weighted draws of the base for the others.

    Decoder means, samples, and the prior with z ~ q(z | x) of a guide that is not the posterior.
    """
    count = 20_000
    x = np.random.default_rng(3).normal(0.5, 0.8, (count, 1)).astype(np.float32)
    fitted = tilted_vae(THETA, **VARIANTS[kind])
    sampler = MALA if kind == "sample" else ImportanceSampling(count)
    learn = MaximumLikelihood(sampler, space="noise", optimizer=pg.SGD(1.0))
    after = pg.fit(
        fitted.model, x, learn, num_steps=1, batch_size=count, seed=0, backend=b,
        init={"energy": fitted.params["energy"]}, progress_bar=False,
    )  # fmt: skip
    got = THETA - after.params["energy"]["theta"]
    eye, h = np.eye(3), 1e-4
    want = np.array(
        [
            objective(THETA + h * e, kind, x[:, 0]) - objective(THETA - h * e, kind, x[:, 0])
            for e in eye
        ]
    ) / (2 * h)
    assert got @ want > 0.999 * np.linalg.norm(got) * np.linalg.norm(want)
    np.testing.assert_allclose(got, want, atol=0.04)
    for name, old in LINEAR.params.items():
        if name in after.params:  # a tilt of means has no encoder
            assert_same_bits(after.params[name], old)


def test_a_tilt_of_an_energy_learns_the_ratio_of_densities(b):
    """Over exp(-x^2 / 2) N(x; 0, 1), of precision 2, whose log Z nobody knows: of a quadratic tilt
    the law at its maximum has the data's own mean and variance."""
    base = EBM(Quadratic(), dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    known = {"energy": {"q": np.float32([[1.0]]), "c": np.float32([0.0])}}
    model = Tilted(pg.Fitted(base, known, shapes={"x": (1,)}), Quadratic())
    x = np.random.default_rng(0).normal(1.0, 0.5, (400, 1)).astype(np.float32)
    learn = MaximumLikelihood(
        Langevin(0.2, num_steps=4, metropolis=True), init="data",
        optimizer=pg.Adam(pg.CosineDecay(0.2, 150, final=0.01)),
    )  # fmt: skip
    fit = pg.fit(
        model, x, learn, num_steps=150, batch_size=400, ema_decay=0.9, seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip
    q, c = (float(np.ravel(fit.params[model.energy_name][n])[0]) for n in ("q", "c"))
    precision, mean = 2.0 + q, q * c / (2.0 + q)
    assert abs(mean - x.mean()) < 3 * 0.5 / 400**0.5
    assert abs(precision * x.var() - 1.0) < 3 * (2 / 400) ** 0.5
    assert_same_bits(fit.params["energy"], known["energy"])


def test_what_is_no_tilt_is_refused_in_words(b):
    x = np.zeros((4, 2), np.float32)
    for model in (
        Tilted(linear_flow, nets.MLP((3,), out=2)),
        EBM(nets.MLP((3,), out=1), pg.dist.Normal(0, 1).expand([2]).to_event(1)),
    ):
        with pytest.raises(ShapeError, match=r"expected one number per datum.*out=\(\)"):
            pg.fit(model, x, MaximumLikelihood(MALA), num_steps=1, batch_size=4, seed=0, backend=b)
    means = tilted_vae(THETA, through="mean")
    z = log_partition(means, Quadrature(51), seed=0, backend=b)
    assert z.estimate == pytest.approx(log_z(THETA, "mean"), abs=1e-4)
    with pytest.raises(AlgorithmError, match="have no density"):
        pg.evaluate(means, x[:, :1], [EnergyLogLikelihood(z, IWAE(4))], seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="infer: the data .* have no density"):
        pg.infer(means, x[:1, :1], MALA, seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="computed from latents .* use space='noise'"):
        pg.generate(means, 2, method=MALA, space="data", seed=0, backend=b)
    whole = tilted_vae(THETA)
    with pytest.raises(AlgorithmError, match=r"expected a base that bounds it.*IWAE"):
        pg.evaluate(whole, x[:, :1], [EnergyLogLikelihood(z)], seed=0, backend=b)
    wide = Tilted(EBM(ENERGY, pg.dist.Normal(0, 1).expand([3]).to_event(1)), ENERGY)
    assert wide.energy_names == ("energy", "energy_2")
    assert Tilted(wide, Features()).energy_name == "energy_3"
    with pytest.raises(AlgorithmError, match="3 numbers to integrate over, expected one or two"):
        log_partition(pg.Fitted(wide, {
            n: ENERGY.init(np.random.default_rng(0), (3,)) for n in wide.energy_names
        }, shapes={"x": (3,)}), Quadrature(11), seed=0, backend=b)  # fmt: skip
    with pytest.raises(AlgorithmError, match=r"got samples with ImportanceSampling"):
        log_partition(whole, ImportanceSampling(10), samples=x, seed=0, backend=b)
