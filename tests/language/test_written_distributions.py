"""Distributions that their user writes: densities, transforms, flat priors, and all of noise.

Laws: a function of noise has its distribution, F(T(eps)) = Phi(eps); a transformed density is the
base's over |det J|, and integrates to one; what is known up to a constant gets no nats.
"""

import math

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once, terms_of
from coupling_cases import STANDARD, coupling_flow, flow, off_zero
from measure_cases import context_of

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError, DeclarationError, ShapeError
from probgen.inference import ELBO, IWAE, SVI
from probgen.models import VAE, Tilted

EPS = np.array([-5.0, -3.0, -1.2, -0.1, 0.0, 0.4, 1.0, 2.5, 4.5], np.float32)
LAWS = {
    "Exponential": ({"rate": 1.7}, st.expon(scale=1 / 1.7)),
    "Gumbel": ({"loc": 0.4, "scale": 1.3}, st.gumbel_r(0.4, 1.3)),
    "Laplace": ({"loc": 0.4, "scale": 1.3}, st.laplace(0.4, 1.3)),
    "LogNormal": ({"loc": 0.4, "scale": 0.6}, st.lognorm(0.6, scale=math.exp(0.4))),
    "Logistic": ({"loc": 0.4, "scale": 1.3}, st.logistic(0.4, 1.3)),
    "Normal": ({"loc": 0.4, "scale": 1.3}, st.norm(0.4, 1.3)),
    "Pareto": ({"scale": 1.3, "alpha": 2.5}, st.pareto(2.5, scale=1.3)),
    "TruncatedNormal": (
        {"loc": 0.4, "scale": 1.3, "low": -0.5, "high": 3.0},
        st.truncnorm(-0.9 / 1.3, 2.6 / 1.3, 0.4, 1.3),
    ),
    "Uniform": ({"low": -1.0, "high": 2.5}, st.uniform(-1.0, 3.5)),
    "Weibull": ({"scale": 1.3, "concentration": 2.5}, st.weibull_min(2.5, scale=1.3)),
}


def local(distribution):
    """A program of one local site x."""

    @pg.model
    def one():
        with pg.data_plate():
            pg.sample("x", distribution)

    return one


def values_of(b, distribution, noise):
    bound, params = bind(local(distribution), b)
    noise = {"x": b.asarray(noise)}
    return terms_of(b, bound.trace, params, {}, noise=noise, batch_size=len(noise["x"]))["x"]


def jacobian(b, fn, noise, places):
    """[n, len(places), m] d fn(noise)[:, places] / d noise, of each row by itself."""

    def slope(i):
        return b.grad(lambda e: ops.sum(ops.take(fn(e), i, axis=1)))(noise)

    return ops.transpose(b.vmap(slope)(b.asarray(np.int32(places)[:, None], "int32")), (1, 0, 2))


def log_det(rows):
    return np.linalg.slogdet(rows.astype(np.float64))[1]


@pytest.mark.parametrize("family", LAWS)
def test_a_function_of_noise_has_its_distribution(b, family):
    """log F and log (1 - F) of x(eps) are those of a standard normal at eps, out in both tails."""
    arguments, law = LAWS[family]
    if family == "TruncatedNormal" and b.name == "torch":
        pytest.skip("Pyro has no TruncatedNormal")
    x = values_of(b, getattr(dist, family)(**arguments), EPS)[0].astype(np.float64)
    slack = 3e-6 * (1 + np.abs(x)) * law.pdf(x)  # of x, in single precision
    for got, want in ((law.cdf(x), st.norm.cdf(EPS)), (law.sf(x), st.norm.sf(EPS))):
        np.testing.assert_array_less(np.abs(got - want), slack + 3e-4 * want + 1e-12)


def test_folded_and_low_rank_noise_have_their_distributions(b):
    """|eps| of a HalfNormal; of a low-rank Gaussian x = A eps with A A^T its covariance."""
    half = values_of(b, dist.HalfNormal(1.3), EPS)[0]
    np.testing.assert_allclose(half, 1.3 * np.abs(EPS), rtol=1e-6)
    factor, diagonal = np.array([[1.0], [-0.5], [2.0]]), np.array([0.3, 0.2, 0.1])
    law = dist.LowRankMultivariateNormal(np.zeros(3), factor, diagonal)
    a = values_of(b, law, np.eye(4, dtype=np.float32))[0]  # rows: A^T
    np.testing.assert_allclose(a.T @ a, factor @ factor.T + np.diag(diagonal), atol=1e-5)


# ---- transforms ----------------------------------------------------------------------------------

FREE = {  # support: (size of the base, where the free numbers of a value stand)
    "real": (2, [0, 1]),
    "positive": (2, [0, 1]),
    "unit_interval": (2, [0, 1]),
    (-1.0, 2.0): (2, [0, 1]),
    (2.0, math.inf): (2, [0, 1]),
    (-math.inf, -3.0): (2, [0, 1]),
    "simplex": (2, [0, 1]),
    "ordered_vector": (3, [0, 1, 2]),
    "corr_cholesky": (1, [2]),
    "lower_cholesky": (6, [0, 3, 4, 6, 7, 8]),
    "positive_definite": (6, [0, 3, 4, 6, 7, 8]),
}


@pytest.mark.parametrize("support", FREE, ids=str)
def test_a_bijection_onto_a_support_has_the_density_of_its_jacobian(b, support):
    """log p(y) = log N(x) - log |det dy/dx| over the free numbers of y, and y keeps its support."""
    size, free = FREE[support]
    base = dist.Normal(0, 1).expand([size]).to_event(1)
    bound, params = bind(local(dist.Transformed(base, dist.BijectTo(support))), b)
    noise = np.random.default_rng(0).normal(size=(4, size)).astype(np.float32)

    def flat(eps):
        value = bound.trace(params, {}, noise={"x": eps}, batch_size=4)["x"].value
        return ops.reshape(value, (4, -1))

    def run(eps):
        site = bound.trace(params, {}, noise={"x": eps}, batch_size=4)["x"]
        inside = b.in_support(site.fn, site.value)
        return site.log_prob, inside, jacobian(b, flat, eps, free)

    log_prob, inside, rows = at_once(b, run, b.asarray(noise))
    want = st.norm.logpdf(noise).sum(-1) - log_det(rows)
    np.testing.assert_allclose(log_prob, want, rtol=1e-4, atol=1e-4)
    assert inside.all()


def test_a_value_outside_has_density_zero_and_no_nan_in_its_gradient(b):
    """An unordered vector, a negative LogNormal by hand."""
    written = dist.Transformed(
        dist.Normal(0.3, 0.8), ops.exp, lambda y: (ops.log(y), -ops.log(y)), support="positive"
    )
    bound, params = bind(local(written), b)

    def total(x):
        found = bound.trace(params, {}, {"x": x}, batch_size=3)["x"].log_prob
        return ops.sum(ops.where(ops.isfinite(found), found, 0.0)), found

    x = np.array([-1.0, 0.5, 2.0], np.float32)
    (_, found), slope = at_once(b, b.value_and_grad(total, has_aux=True), b.asarray(x))
    want = st.lognorm(0.8, scale=math.exp(0.3)).logpdf(x)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert np.isfinite(slope).all()
    ordered = dist.Transformed(STANDARD, dist.BijectTo("ordered_vector"))
    bound, params = bind(local(ordered), b)
    pair = b.asarray(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32))
    _, found = terms_of(b, bound.trace, params, {}, {"x": pair}, batch_size=2)["x"]
    assert np.isfinite(found[0]) and found[1] == -np.inf


@pytest.fixture(scope="module")
def bound_flow(b):
    bound, params = bind(flow, b)
    return bound, off_zero(b, params)


def test_a_flow_has_the_density_of_its_noise_over_the_jacobian(b, bound_flow):
    """log p(x(eps)) = log N(eps) - log |det J|; that of the tilted one is integrated elsewhere."""
    bound, params = bound_flow
    noise = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)

    def x(eps):
        return bound.trace(params, {}, noise={"x": eps}, batch_size=5)["x"].value

    def run(eps):
        site = bound.trace(params, {}, noise={"x": eps}, batch_size=5)["x"]
        again = bound.trace(params, {}, {"x": site.value}, batch_size=5)["x"].log_prob
        return site.log_prob, again, jacobian(b, x, eps, [0, 1])

    log_prob, again, rows = at_once(b, run, b.asarray(noise))
    want = st.norm.logpdf(noise).sum(-1) - log_det(rows)
    np.testing.assert_allclose(log_prob, want, atol=2e-4)
    np.testing.assert_array_equal(again, log_prob)


def test_a_flow_is_drawn_by_row(b, bound_flow):
    """Each datum has its own key's draw, so that a chunk changes no number."""
    bound, params = bound_flow
    ids = np.arange(3)
    whole, alone = (
        terms_of(b, bound.trace, params, {}, key=b.row_keys(b.key(0), some), batch_size=len(some))[
            "x"
        ][0]
        for some in (ids, ids[1:2])
    )
    np.testing.assert_array_equal(whole[1:2], alone)


def test_what_is_made_of_noise_is_tilted_in_noise_space(b):
    """The chain's density is log N(eps) - E(x(eps)), the base's own density cancelled."""
    base = dist.LogNormal(0, 1).expand([2]).to_event(1)
    bound, params = bind(Tilted(local(base), nets.MLPEnergy((4,))), b)
    space = model_target(bound, "noise")
    eps = {"x": b.asarray(np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32))}

    def run(eps):
        sites = bound.trace(params, {}, noise=eps, batch_size=3)
        energy = bound.structure.nets["energy"].apply(params["energy"], sites["x"].value)
        return energy, space.log_density(eps, params, {})

    energy, found = at_once(b, run, eps)
    want = st.norm.logpdf(b.to_numpy(eps["x"])).sum(-1) - energy
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_gamma_has_no_noise_space(b):
    bound, _ = bind(Tilted(local(dist.Gamma(2.0, 1.0)), nets.MLPEnergy((4,), in_ndim=0)), b)
    with pytest.raises(AlgorithmError, match="not a function of normal noise"):
        model_target(bound, "noise")


def test_a_flow_is_the_prior_of_a_vae_and_is_learned_with_it(b):
    """p(z) is the flow's own, and the bound has a gradient in its nets."""
    vae = VAE(
        latent=coupling_flow(2), decoder=nets.MLP((4,), 3), likelihood=dist.Normal,
        encoder=nets.MLP((4,), 2, heads=("loc", "log_scale")),
    )  # fmt: skip
    batch = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    bound, params = bind(vae, b, data=batch)
    params, batch = off_zero(b, params), {"x": b.asarray(batch["x"])}
    alone, _ = bind(local(coupling_flow(2)), b)

    def run(params, key):
        z = bound.trace_guide(params, batch, key=key)["z"].value

        def log_prior(params):
            return ops.sum(bound.trace(params, batch, {"z": z})["z"].log_prob)

        prior = alone.trace(params, {}, {"x": z}, batch_size=4)["x"].log_prob
        return b.value_and_grad(log_prior)(params), ops.sum(prior)

    (log_prior, slopes), prior = at_once(b, run, params, b.key(1))
    assert abs(log_prior - prior) < 1e-4
    for name in ("coupling_0", "coupling_1"):
        assert np.abs(slopes[name]["layer0"]["weight"]).max() > 0
    assert bound.is_normalized


# ---- densities, and what is none -----------------------------------------------------------------


def test_a_density_by_its_formula_is_the_distribution(b):
    """A Normal by hand: its log density, and its draws from noise."""

    def log_prob(x):
        return ops.sum(
            -0.5 * ops.square((x - 1.0) / 2.0) - math.log(2.0 * math.sqrt(2 * math.pi)), -1
        )

    by_hand = dist.Density(log_prob, lambda eps: 1.0 + 2.0 * eps, event_shape=2)
    value, log_p = values_of(b, by_hand, np.array([[0.5, -1.0]], np.float32))
    np.testing.assert_allclose(value, [[2.0, -1.0]])
    np.testing.assert_allclose(log_p, st.norm(1, 2).logpdf(value).sum(-1), rtol=1e-6)
    bound, params = bind(local(by_hand), b)
    drawn, _ = terms_of(b, bound.trace, params, {}, key=b.key(0), batch_size=4000)["x"]
    assert abs(drawn.mean() - 1.0) < 5 * 2.0 / math.sqrt(8000)


def test_a_density_without_draws_says_so(b):
    bound, params = bind(local(dist.Density(lambda x: -x * x)), b)
    with pytest.raises(AlgorithmError, match="has no draws"):
        bound.trace(params, {}, key=b.key(0), batch_size=2)


def test_a_flat_prior_is_labelled_and_gets_no_nats(b):
    """The posterior under it is the likelihood's; a marginal likelihood there is none."""

    @pg.model
    def flat():
        mu = pg.sample("mu", dist.ImproperUniform("real"))
        with pg.data_plate():
            pg.sample("y", dist.Normal(mu, 1.0))

    y = np.array([0.5, 1.5], np.float32)
    bound, params = bind(flat, b, data={"y": y}, whole=True)
    point = Posterior(bound, 2).point(
        params, {"y": b.asarray(y)}, {"mu": b.asarray(np.float32(0.7))}
    )
    want = st.norm.logpdf(y, 0.7).sum()
    np.testing.assert_allclose(float(b.to_numpy(point.log_density)), want, rtol=1e-5)
    assert not bound.is_normalized
    with pytest.raises(AlgorithmError, match=r"densities of \['mu'\] do not integrate to one"):
        bound.require_normalized("evaluate")
    mixed = dist.Transformed(dist.ImproperUniform("real"), dist.BijectTo("positive"))
    assert not mixed.is_normalized


def test_svi_does_not_learn_a_density_up_to_its_constant(b):
    """A net in it would only make it larger."""

    @pg.model
    def energy():
        def log_prob(x):
            return -pg.net("energy", nets.MLPEnergy((4,)))(x)

        with pg.data_plate():
            law = dist.Density(log_prob, event_shape=2, is_normalized=False)
            pg.sample("x", law)

    model = energy.with_guide(lambda: None)
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(AlgorithmError, match="which carries the density of 'x', depends"):
        pg.fit(model, x, SVI(ELBO()), num_steps=1, batch_size=2, seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="known up to a constant"):
        context_of(model, b, x).function(IWAE(2))


def test_axes_that_do_not_fit_are_refused(b):
    """Each would broadcast into another density in silence."""

    def inverse(y):
        return y, 0.0 * y[..., 0]

    wrong = dist.Transformed(dist.Normal(0, 1).expand([2]), lambda x: x, inverse).to_event(1)
    with pytest.raises(ShapeError, match="inverse_and_log_det gives a log_det of shape"):
        bind(local(wrong), b)
    with pytest.raises(ShapeError, match="the log_prob of dist.Density gives shape"):
        bind(local(dist.Density(lambda x: ops.sum(x), event_shape=2)), b)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dist.Transformed(STANDARD, ops.exp), "expected two functions"),
        (lambda: dist.Transformed(3.0, ops.exp, ops.exp), "base"),
        (lambda: dist.Density(3.0), "log_prob"),
        (lambda: dist.Density(ops.exp, support="postive"), "support"),
        (lambda: dist.Density(ops.exp, support=(2, 1)), "support"),
        (lambda: dist.BijectTo("circle"), "support"),
    ],
)
def test_wrong_arguments_are_refused_where_they_are_written(make, words):
    with pytest.raises(DeclarationError, match=words):
        make()
