"""Generators and VAEs: likelihoods, guides, hierarchies, and a known optimum (pPCA)."""

import numpy as np
import pytest
from at_once import at_once, terms_of
from scipy import special, stats

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError, DeclarationError, ProbgenError, UnknownName
from probgen.inference import ELBO, PI, SVI, ControlledELBO
from probgen.inference.objectives.terms import compute, log_weights
from probgen.models import VAE, Generator, Tilted
from probgen.models import likelihoods as lik
from probgen.trees import tree_map

PRIOR = dist.Normal(0, 1).expand([3]).to_event(1)


@pytest.fixture(scope="module")
def b(backend_name):
    """The backend without inductor, whose compilation short fits do not earn back."""
    options = {"compile": "graph"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


def small_vae(likelihood, shape=(4, 4, 1), latent=PRIOR, d=3, **options):
    return VAE(
        latent=latent,
        decoder=nets.MLP(hidden=(16,), out=shape),
        likelihood=likelihood,
        encoder=nets.MLP(hidden=(16,), out=d, heads=("loc", "log_scale")),
        **options,
    )


# ---- likelihoods ---------------------------------------------------------------------------------


def logistic_pmf(k, loc, scale, levels):
    """P(level k / (levels - 1)) by differences of the distribution function; the edges take all."""
    step = 1.0 / (levels - 1)
    upper = special.expit(((k + 0.5) * step - loc) / scale)
    lower = special.expit(((k - 0.5) * step - loc) / scale)
    return np.where(k == levels - 1, 1.0, upper) - np.where(k == 0, 0.0, lower)


def softplus(x):
    return np.logaddexp(0, x)


def bits(rng, shape):
    return (rng.uniform(size=shape) > 0.5).astype(np.float32)


# likelihood -> (draw data, numpy log density of a datum's values given the decoder's output)
LIKELIHOODS = {
    "bernoulli": (lik.Bernoulli(), bits, lambda x, o: stats.bernoulli.logpmf(x, special.expit(o))),
    "normal fixed": (
        lik.Normal(scale=0.3),
        lambda rng, shape: rng.normal(size=shape).astype(np.float32),
        lambda x, o: stats.norm.logpdf(x, o, 0.3),
    ),
    "normal learned": (
        lik.Normal(),
        lambda rng, shape: rng.normal(size=shape).astype(np.float32),
        lambda x, o: stats.norm.logpdf(x, o, 1e-3 + np.log(2.0)),  # the parameter starts at 0
    ),
    "normal predicted": (
        lik.Normal(scale="predicted"),
        lambda rng, shape: rng.normal(size=shape).astype(np.float32),
        lambda x, o: stats.norm.logpdf(x, o[..., 0], 1e-3 + softplus(o[..., 1])),
    ),
    "discretised logistic": (
        lik.DiscretizedLogistic(num_levels=16),
        lambda rng, shape: (rng.integers(0, 16, size=shape) / 15).astype(np.float32),
        lambda x, o: np.log(
            logistic_pmf(
                np.round(x * 15), special.expit(o[..., 0]), 1e-3 + 0.2 * softplus(o[..., 1]), 16
            )
        ),
    ),
    "categorical": (
        lik.Categorical(),
        lambda rng, shape: rng.integers(0, 256, size=shape),
        lambda x, o: np.take_along_axis(special.log_softmax(o, axis=-1), x[..., None], -1)[..., 0],
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_scipys(b, name):
    likelihood, draw, log_density = LIKELIHOODS[name]
    rng = np.random.default_rng(0)
    x, z = draw(rng, (5, 2, 2, 2)), rng.normal(size=(5, 3)).astype(np.float32)
    model = Generator(PRIOR, nets.MLP(hidden=(8,), out=(2, 2, 2)), likelihood)
    bound, params = bind(model, b, data={"x": x}, seed=0)
    _, found = terms_of(b, bound.trace, params, {"x": b.asarray(x)}, {"z": b.asarray(z)})["x"]
    layers = tree_map(lambda a: b.to_numpy(a).astype(np.float64), params["decoder"])
    hidden = np.maximum(z @ layers["layer0"]["weight"] + layers["layer0"]["bias"], 0.0)
    k = likelihood.parameters_per_value
    output = (hidden @ layers["out"]["weight"] + layers["out"]["bias"]).reshape(
        (5, 2, 2, 2) if k == 1 else (5, 2, 2, 2, k)
    )
    expected = log_density(x, output).sum((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


LEARNED = ("discretised logistic", "categorical", "normal learned", "normal predicted")


# The others are trained by convolutions and by the two layers below.
@pytest.mark.repeated("test_log_prob_is_scipys")
@pytest.mark.parametrize("name", LEARNED)
def test_every_likelihood_trains(b, name):
    """The bound of the last 20 steps lies 5 standard errors above the median of the first 20.

    The median, since an untrained scale may put a first batch ten thousand nats away.
    """
    likelihood, draw, _ = LIKELIHOODS[name]
    rng = np.random.default_rng(1)
    prototypes = draw(rng, (4, 4, 4, 1))
    x = prototypes[rng.integers(0, 4, size=256)]
    fitted = pg.fit(
        small_vae(likelihood), x, SVI(ELBO(), pg.Adam(1e-2)), num_steps=100, batch_size=64, seed=0,
        backend=b, progress_bar=False,
    )  # fmt: skip
    first, last = fitted.history["elbo"][:20], fitted.history["elbo"][-20:]
    assert last.mean() - np.median(first) > 5 * last.std() / np.sqrt(20)
    draws = pg.generate(fitted, 7, seed=0, backend=b)["x"]
    assert draws.shape == (7, 4, 4, 1)
    assert np.isin(draws, np.arange(256) if name == "categorical" else draws).all()


def test_the_mean_of_a_datum_is_its_expectation(b):
    """Against the average of 4000 draws of x given one z, within 5 standard errors."""
    for likelihood in (lik.Bernoulli(), lik.Normal(0.4), lik.Categorical(num_classes=7)):
        model = Generator(PRIOR, nets.MLP(hidden=(8,), out=(2,)), likelihood)
        bound, params = bind(model, b, data={}, seed=0, **{})
        z = b.asarray(np.tile(np.float32([[0.5, -1.0, 0.3]]), (4000, 1)))

        def run(params, z, key, model=model, bound=bound):
            draws = bound.trace(params, {}, {"z": z}, key=key, batch_size=4000)["x"].value
            return draws, model.mean(bound, params, z[:1])[0]

        draws, mean = at_once(b, run, params, z, b.key(0))
        draws = draws.astype(np.float64)
        assert np.all(np.abs(draws.mean(0) - mean) < 5 * draws.std(0) / np.sqrt(4000) + 1e-6)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: lik.Normal(scale=0.0), "above 0"),
        (lambda: lik.Normal(scale="fixed"), "learned"),
        (lambda: small_vae(dist.Gamma), "expected one of"),
        (lambda: VAE(PRIOR, nets.MLP(), dist.Bernoulli), "encoder"),
        (lambda: small_vae(dist.Bernoulli, guide_kind="low rank"), "guide_kind"),
        (lambda: Generator(3, nets.MLP(), dist.Bernoulli), "latent"),
        (lambda: Generator(PRIOR, "net", dist.Bernoulli), "decoder"),
    ],
)
def test_declarations_that_make_no_sense_are_refused(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()


def test_an_encoder_without_the_two_heads_is_named(b):
    model = VAE(PRIOR, nets.MLP(out=(4,)), dist.Bernoulli, nets.MLP(out=3, heads=("mean", "sd")))
    with pytest.raises(UnknownName, match="'loc' and 'log_scale'"):
        bind(model, b, data={"x": np.zeros((2, 4), np.float32)}, seed=0)


# ---- guides --------------------------------------------------------------------------------------


def linear_data(size=2000, noise=0.5):
    rng = np.random.default_rng(0)
    w = np.array([[1.5, 1.2], [-1.0, -0.3], [0.3, 0.9], [0.9, 1.4]])
    x = rng.normal(size=(size, 2)) @ w.T + noise * rng.normal(size=(size, 4))
    return x.astype(np.float32)


def full_guide(d, noise, out):
    """A linear-Gaussian VAE with a guide of full covariance."""
    return VAE(
        latent=dist.Normal(0, 1).expand([d]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(out,)),
        likelihood=lik.Normal(scale=noise),
        encoder=nets.MLP(hidden=(), out=d, heads=("loc", "log_scale")),
        guide_kind="full",
    )


def test_of_a_full_covariance_guide_that_is_the_posterior_every_weight_is_the_evidence(b):
    """log p(x, z) - log q(z | x) = log N(x; 0, W'W + s^2 I), whatever z was drawn."""
    d, x = 3, np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    w = np.random.default_rng(2).normal(size=(d, 5))
    cov = np.linalg.inv(np.eye(d) + w @ w.T / 0.25)
    root = np.linalg.cholesky(cov)
    below = root[np.tril_indices(d, -1)]  # row by row
    assert np.abs(below).min() > 0.02
    raw = np.concatenate([np.log(np.expm1(np.diag(root) - 1e-4)), below])
    head = np.concatenate([w.T @ cov / 0.25, np.zeros((5, len(raw)))], 1)
    encoder = {"weight": head, "bias": np.concatenate([np.zeros(d), raw])}
    params = {"decoder": {"out": {"weight": w, "bias": np.zeros(5)}}, "encoder": {"out": encoder}}
    params = tree_map(lambda leaf: b.asarray(leaf.astype(np.float32)), params)
    bound, _ = bind(full_guide(d, 0.5, 5), b, data={"x": x}, seed=0)

    def run(params, x, key):
        options = {"num_particles": 4, "analytic_kl": False}
        return log_weights(compute(bound, params, {"x": x}, key, **options))

    found = at_once(b, run, params, b.asarray(x), b.key(0))
    exact = stats.multivariate_normal(np.zeros(5), w.T @ w + 0.25 * np.eye(5)).logpdf(x)
    np.testing.assert_allclose(found, np.broadcast_to(exact, (4, 6)), rtol=1e-4, atol=1e-4)


def water_filling(eigenvalues, rate):
    """The least squared error of a Gaussian source at a rate in nats."""
    low, high = 1e-12, eigenvalues.max()
    for _ in range(200):
        theta = 0.5 * (low + high)
        kept = np.minimum(theta, eigenvalues)
        needed = 0.5 * np.log(eigenvalues / kept).sum()
        low, high = (theta, high) if needed > rate else (low, theta)
    return kept.sum()


def test_a_controlled_linear_vae_reaches_reverse_water_filling(b):
    """Acceptance 12: p(x | z) = N(W z + c, I/2), a full guide, 3 nats; distortion to 2%.

    KL and squared error of linear-Gaussian codes depend on the data's covariance alone, so the
    optimum is the Gaussian source's with the sample's own eigenvalues.
    """
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x = rng.normal(size=(1000, 5)) * np.sqrt([6.0, 3.0, 1.5, 0.6, 0.1]) @ axes.T
    x = x.astype(np.float32)
    model = full_guide(5, 0.5**0.5, 5)
    controller = PI(ki=6e-3, initial_beta=1.0)
    rate = pg.CosineDecay(2e-2, num_steps=800)
    fitted = pg.fit(
        model, x, SVI(ControlledELBO(set_point=3.0, controller=controller), pg.Adam(rate)),
        num_steps=800, batch_size=250, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    assert fitted.history.last("kl", 200) == pytest.approx(3.0, rel=0.01)
    # Both terms in closed form, of the guide N(h, L L'): the softplus diagonal of L, row by row.
    weight, bias = (fitted.params["decoder"]["out"][k].astype(float) for k in ("weight", "bias"))
    head = fitted.params["encoder"]["out"]
    loc, raw = np.split(x.astype(float) @ head["weight"] + head["bias"], [5], axis=1)
    root = np.zeros((len(x), 5, 5))
    root[:, *np.diag_indices(5)] = np.logaddexp(0.0, raw[:, :5]) + 1e-4
    root[:, *np.tril_indices(5, -1)] = raw[:, 5:]
    log_det = np.log(np.einsum("nii->ni", root)).sum(1)
    kl = 0.5 * ((root**2).sum((1, 2)) + (loc**2).sum(1) - 5.0) - log_det
    error = ((x - loc @ weight - bias) ** 2).sum(1)
    distortion = (error + ((root.swapaxes(1, 2) @ weight) ** 2).sum((1, 2))).mean()
    best = water_filling(np.linalg.eigvalsh(np.cov(x.T)), kl.mean())
    assert 0.99 * best < distortion < 1.02 * best


def test_the_two_guides_agree_where_both_hold_the_posterior(b):
    """One latent: a full covariance is a diagonal one, so the KLs agree for the same numbers."""
    x = linear_data(6)
    found = []
    for kind in ("diagonal", "full"):
        encoder = nets.MLP(hidden=(), out=1, heads=("loc", "log_scale"))
        one = dist.Normal(0, 1).expand([1]).to_event(1)
        model = VAE(one, nets.MLP(hidden=(), out=(4,)), lik.Normal(0.5), encoder, guide_kind=kind)
        bound, params = bind(model, b, data={"x": x}, seed=0)
        raw = np.float32([0.2, np.log(np.expm1(np.exp(-0.7) - 1e-4))]) if kind == "full" else None
        head = np.zeros((4, 2), np.float32)
        head[:, 0] = [0.1, -0.2, 0.3, 0.4]
        bias = raw if kind == "full" else np.float32([0.2, -0.7])
        params["encoder"] = {"out": {"weight": b.asarray(head), "bias": b.asarray(bias)}}
        batch = {"x": b.asarray(x)}

        def kl(params, batch, key, bound=bound):
            return compute(bound, params, batch, key).kl["z"]

        found.append(at_once(b, kl, params, batch, b.key(0)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.repeated("test_nets.py::test_both_backends_agree_on_the_gradient")
def test_a_convolutional_vae_learns(b):
    x = (pg.data.digits().images[:256] > 0.5).astype(np.float32)
    model = VAE(
        latent=dist.Normal(0, 1).expand([4]).to_event(1),
        decoder=nets.ConvDecoder(channels=(8, 4), out=(8, 8, 1)),
        likelihood=dist.Bernoulli,
        encoder=nets.ConvEncoder(channels=(4, 8), out=4, heads=("loc", "log_scale")),
    )
    fitted = pg.fit(
        model, x, SVI(ELBO(), pg.Adam(1e-2)), num_steps=60, batch_size=64, seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip
    assert fitted.history["elbo"][-10:].mean() > fitted.history["elbo"][:10].mean() + 5.0
    assert pg.generate(fitted, 3, seed=0, backend=b)["x"].shape == (3, 8, 8, 1)


def test_a_convolutional_decoder_gives_the_numbers_that_a_likelihood_needs(b):
    model = VAE(
        latent=dist.Normal(0, 1).expand([4]).to_event(1),
        decoder=nets.ConvDecoder(channels=(4, 4), out=(8, 8, 2)),
        likelihood=lik.DiscretizedLogistic(num_levels=17),
        encoder=nets.ConvEncoder(channels=(4, 4), out=4, heads=("loc", "log_scale")),
    )
    x = np.repeat(pg.data.digits().images[:4], 2, axis=-1)
    bound, params = bind(model, b, data={"x": x}, seed=0)
    value, log_prob = terms_of(b, bound.trace, params, {"x": b.asarray(x)}, key=b.key(0))["x"]
    assert log_prob.shape == (4,) and value.shape == (4, 8, 8, 2)


# ---- hierarchies ---------------------------------------------------------------------------------


def hierarchy():
    """Two layers of affine maps; encoders start near the prior, as exp(log_scale) of each other."""
    top = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(), out=3),
        likelihood=lik.Normal(scale=0.4),
        encoder=nets.MLP(hidden=(), out=2, heads=("loc", "log_scale"), out_scale=0.1),
    )
    return VAE(
        latent=top,
        decoder=nets.MLP(hidden=(), out=(4,)),
        likelihood=lik.Normal(scale=0.5),
        encoder=nets.MLP(hidden=(), out=3, heads=("loc", "log_scale"), out_scale=0.1),
    )


def affine(b, tree, h):
    layer = tree_map(lambda a: b.to_numpy(a).astype(np.float64), tree["out"])
    return h @ layer["weight"] + layer["bias"]


def test_a_hierarchical_vae_has_the_bound_that_one_writes_by_hand(b):
    """p(top) p(z | top) p(x | z) against q(z | x) q(top | z), term by term at the guide's draws."""
    x = linear_data(5)
    bound, params = bind(hierarchy(), b, data={"x": x}, seed=0, num_data=5)
    assert set(bound.latents) == {"z", "prior/z"} and bound.observed == ("x",)
    assert set(params) == {"decoder", "encoder", "prior/decoder", "prior/encoder"}

    def run(params, x, key):
        drawn = compute(bound, params, {"x": x}, key, analytic_kl=False)
        closed = compute(bound, params, {"x": x}, key, analytic_kl=True)
        return drawn.latents, drawn.log_prob["x"], drawn.kl, closed.kl

    latents, log_prob, kl, closed = at_once(b, run, params, b.asarray(x), b.key(0))
    z, top = (latents[n].astype(np.float64) for n in ("z", "prior/z"))
    q_z, q_top = affine(b, params["encoder"], x), affine(b, params["prior/encoder"], z)
    log_q_z = stats.norm.logpdf(z, q_z[:, :3], np.exp(q_z[:, 3:])).sum(1)
    log_q_top = stats.norm.logpdf(top, q_top[:, :2], np.exp(q_top[:, 2:])).sum(1)
    log_p_z = stats.norm.logpdf(z, affine(b, params["prior/decoder"], top), 0.4).sum(1)
    log_p_x = stats.norm.logpdf(x, affine(b, params["decoder"], z), 0.5).sum(1)
    kl_top = log_q_top - stats.norm.logpdf(top).sum(1)
    for got, want in (
        (log_prob, log_p_x),
        (kl["z"], log_q_z - log_p_z),
        (kl["prior/z"], kl_top),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(closed["z"], log_q_z - log_p_z, rtol=1e-4, atol=1e-4)
    mean, scale = q_top[:, :2], np.exp(q_top[:, 2:])
    exact = 0.5 * (mean**2 + scale**2 - 1 - 2 * np.log(scale)).sum(1)
    np.testing.assert_allclose(closed["prior/z"], exact, rtol=1e-4)


@pytest.mark.repeated("test_a_hierarchical_vae_has_the_bound_that_one_writes_by_hand")
def test_a_hierarchical_vae_learns_reports_and_generates(b):
    fitted = pg.fit(
        hierarchy(), linear_data(512), SVI(ELBO(), pg.Adam(1e-2)), num_steps=150, batch_size=128,
        seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    history = fitted.history
    assert history["elbo"][-20:].mean() > history["elbo"][:20].mean() + 1.0
    np.testing.assert_allclose(history["kl"], history["kl/z"] + history["kl/prior/z"], rtol=1e-4)
    assert set(fitted.report.kl) == {"z", "prior/z"} and fitted.report.information is not None
    draws = pg.generate(fitted, 4, seed=0, backend=b)
    assert draws["x"].shape == (4, 4)
    assert draws["z"].shape == (4, 3) and draws["prior/z"].shape == (4, 2)


BETWEEN = pytest.mark.repeated("test_every_level_of_a_hierarchical_vae_is_tilted_in_its_noise")


@pytest.mark.parametrize("on", ["x", "E[x]", pytest.param("z", marks=BETWEEN), "prior/z"])
def test_every_level_of_a_hierarchical_vae_is_tilted_in_its_noise(b, on):
    """log N(eps; 0, I) - E(the value there): its own densities and Jacobians cancel."""
    through = {"through": "mean", "on": "x"} if on == "E[x]" else {"on": on}
    bound, params = bind(Tilted(hierarchy(), nets.MLPEnergy(()), **through), b)
    params["energy"] = b.tree_map(lambda w: w + 0.7, params["energy"])
    target = model_target(bound, "noise")

    def run(params, key):
        eps = target.init(params, {}, key, 5)
        return eps, target.log_density(eps, params, {})

    eps, found = at_once(b, run, params, b.key(0))
    e = {n: v.astype(np.float64) for n, v in eps.items()}
    values = {"prior/z": e["prior/z"]}
    values["z"] = affine(b, params["prior/decoder"], e["prior/z"]) + 0.4 * e["z"]
    values["E[x]"] = affine(b, params["decoder"], values["z"])
    values["x"] = values["E[x]"] + (0.5 * e["x"] if on != "E[x]" else 0.0)
    want = sum(stats.norm.logpdf(v).sum(1) for v in e.values())
    want = want - affine(b, params["energy"], values[on])[:, 0]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.repeated("test_priors.py::test_a_vae_behind_a_fitted_energy_is_fitted_and_scored")
def test_a_fitted_prior_stays_frozen(b):
    z = linear_data(300)[:, :3]
    params = tree_map(b.to_numpy, bind(hierarchy().latent, b, data={"x": z}, seed=0)[1])
    prior = pg.Fitted(hierarchy().latent, params, shapes={"x": (3,)})
    model = small_vae(dist.Bernoulli, shape=(4,), latent=prior)
    x = bits(np.random.default_rng(0), (128, 4))
    fitted = pg.fit(
        model, x, SVI(ELBO()), num_steps=10, batch_size=64, seed=0, backend=b, progress_bar=False
    )
    for name in ("decoder", "encoder"):
        np.testing.assert_array_equal(
            fitted.params[f"prior/{name}"]["out"]["weight"], prior.params[name]["out"]["weight"]
        )


def test_a_prior_without_a_guide_is_refused_by_name(b):
    prior = Generator(
        dist.Normal(0, 1).expand([2]).to_event(1), nets.MLP(hidden=(), out=3), lik.Normal(0.4)
    )
    model = small_vae(dist.Bernoulli, shape=(4,), latent=prior)
    with pytest.raises(AlgorithmError, match="prior/z") as caught:
        pg.fit(
            model, bits(np.random.default_rng(0), (64, 4)), SVI(ELBO()), num_steps=2,
            batch_size=32, seed=0, backend=b, progress_bar=False,
        )  # fmt: skip
    assert isinstance(caught.value, ProbgenError)


def test_the_density_in_latex_names_likelihood_and_guide():
    assert r"\mathrm{Bernoulli}" in small_vae(dist.Bernoulli).formula()
    assert "0.4^2 I" in small_vae(lik.Normal(0.4)).formula()
    assert r"\sigma_\theta(z)^2" in small_vae(lik.Normal("predicted")).formula()
    assert r"L_\phi(x)" in small_vae(dist.Bernoulli, guide_kind="full").formula()
