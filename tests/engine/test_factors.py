"""What carries a factor is known up to a constant, whatever its class says.

p(x, z) = N(z; 0, 1) N(x; z, 1) e^5: log Z = 5, so a "log p(x)" would be 5 nats too large
p(x) = N(x; 0, 1) e^(3 x): mean 3, log Z = 9/2
"""

import re

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import (
    AIS,
    ELBO,
    HMC,
    IWAE,
    SVI,
    Langevin,
    MaximumLikelihood,
    bdmc,
    log_partition,
)
from probgen.models import EBM, VAE, Tilted

X = np.float32([0.0, 1.0])


@pg.model
def lifted():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.factor("tilt", 5.0 + 0.0 * z)
        pg.sample("x", dist.Normal(z, 1.0))


@lifted.with_guide
def lifted_guided(x):
    with pg.data_plate():
        pg.sample("z", dist.Normal(x / 2, 0.5**0.5))


@pg.model
def energy():
    with pg.data_plate():
        x = pg.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        pg.factor("tilt", 3.0 * x[..., 0])


@pg.model
def around():
    pg.submodel("inner", energy)


def over_energy():
    """A VAE whose prior is a program with a factor."""
    return VAE(
        latent=energy,
        decoder=nets.MLP(hidden=(), out=2),
        likelihood=dist.Normal,
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )


def native(backend_name):
    """The energy in the backend's own words."""
    if backend_name == "jax":
        import numpyro
        import numpyro.distributions as nd

        def tilted():
            with numpyro.plate("data", 1):
                x = numpyro.sample("x", nd.Normal(0.0, 1.0))
                numpyro.factor("tilt", 3.0 * x)

        return pg.from_numpyro(tilted)
    import pyro
    import pyro.distributions as pd

    def tilted():
        with pyro.plate("data", 1):
            x = pyro.sample("x", pd.Normal(0.0, 1.0))
            pyro.factor("tilt", 3.0 * x)

    return pg.from_pyro(tilted)


@pytest.mark.parametrize("measure", [ELBO(2), IWAE(2), AIS(num_steps=2, num_chains=2)])
def test_no_nats_are_quoted_of_a_density_with_a_factor(b, measure):
    """Before: log p(x) + 5 without a word."""
    fitted = pg.Fitted(lifted_guided, {}, shapes={"x": ()})
    with pytest.raises(AlgorithmError, match=r"factors \['tilt'\].*log_partition"):
        pg.evaluate(fitted, X, [measure], seed=0, backend=b, progress_bar=False)


def test_bidirectional_monte_carlo_refuses_it_too(b):
    fitted = pg.Fitted(lifted_guided, {}, shapes={"x": ()})
    with pytest.raises(AlgorithmError, match=r"AIS.*known up to a constant"):
        bdmc(fitted, 2, AIS(num_steps=2, num_chains=2), seed=0, backend=b, progress_bar=False)


def test_ancestral_draws_are_refused_and_a_chain_finds_the_mean(b):
    """E[x] = 3; ancestral draws, which leave the factor out, have mean 0."""
    fitted = pg.Fitted(energy, {}, shapes={"x": (1,)})
    with pytest.raises(AlgorithmError, match="no ancestral draws.*Langevin"):
        pg.generate(fitted, 10, seed=0, backend=b)
    chain = Langevin(0.2, num_steps=60)
    draws = pg.generate(fitted, 1000, seed=0, backend=b, method=chain)["x"]
    assert abs(draws.mean() - 3.0) < 0.3  # 9 standard errors


def test_log_partition_estimates_what_is_missing(b):
    """log Z = 9/2; before, it refused the model as normalised."""
    fitted = pg.Fitted(energy, {}, shapes={"x": (1,)})
    found = log_partition(fitted, AIS(num_steps=60, num_chains=64), seed=0, backend=b)
    assert abs(found.estimate - 4.5) < 6 * found.standard_error + 0.05
    assert found.standard_error < 0.3


def test_a_whole_is_unnormalised_by_its_parts(b, backend_name):
    """A prior, a submodel, a native program: the factor is seen wherever it stands."""
    for model in (around, over_energy(), native(backend_name)):
        bound, params = bind(model, b, data={"x": np.zeros((1, 2), "f4")} if model.guide else {})
        assert not bound.is_normalized
        assert "known up to a constant" in model.describe()
        numpy = b.tree_map(b.to_numpy, params)
        with pytest.raises(AlgorithmError, match="no ancestral draws"):
            pg.generate(pg.Fitted(model, numpy), 3, seed=0, backend=b)
    plain, _ = bind(pg.model(lambda: pg.sample("x", dist.Normal(0.0, 1.0))), b)
    assert plain.is_normalized


@pg.model
def drawn_away():
    m = pg.sample("m", dist.Normal(0.0, 1.0))
    pg.factor("tilt", 3.0 * m)


def test_chains_over_latents_climb_the_factors_too(b):
    """A posterior needs no constant: N(0, 1) e^(3 m) is N(3, 1), up to e^(9/2)."""
    bound, params = bind(drawn_away, b, whole=True)
    posterior = Posterior(bound, None)
    posterior.check()
    m = np.float32([-1.0, 0.0, 2.5])
    found = [
        float(b.to_numpy(posterior.point(params, {}, {"m": b.asarray(each)}).log_density))
        for each in m
    ]
    np.testing.assert_allclose(found, stats.norm.logpdf(m, 3.0) + 4.5, rtol=1e-5, atol=1e-5)


@pytest.mark.repeated("test_chains_over_latents_climb_the_factors_too")
def test_chains_over_latents_take_factors_as_they_are(b):
    hmc = HMC(num_warmup=100, num_samples=250, num_chains=1, num_steps=2, engine="probgen")
    draws = pg.infer(drawn_away, None, hmc, seed=0, backend=b, progress_bar=False).posterior["m"]
    assert abs(float(draws.mean()) - 3.0) < 0.5


def test_a_unit_distribution_is_told_to_be_a_factor(b):
    with pytest.raises(DeclarationError, match=r"pg\.factor\('u'"):
        bind(pg.model(lambda: pg.sample("u", dist.Unit(1.0))), b)


# ---- learning through a factor -------------------------------------------------------------------

LATENT = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


def vae(latent):
    return VAE(
        latent=latent,
        decoder=nets.MLP(hidden=(), out=2),
        likelihood=dist.Normal,
        encoder=nets.MLP(hidden=(), out=2, heads=("loc", "log_scale")),
    )


def ebm():
    return EBM(nets.MLPEnergy(hidden=(3,)), LATENT)


def fitted_ebm(b):
    _, params = bind(ebm(), b, seed=0)
    return pg.Fitted(ebm(), b.tree_map(b.to_numpy, params), shapes={"x": (2,)})


def pulled(*, learned_prior, on="z", through=False):
    """z ~ N(0, s^2) with a factor exp(-z^2 / 2): Z = (1 + s^2)^(-1/2), whatever the decoder."""

    @pg.model
    def model():
        with pg.data_plate():
            s = ops.exp(pg.net("prior", nets.Parameter(()))()) if learned_prior else 1.0
            z = pg.sample("z", dist.Normal(0.0, s))
            loc = pg.net("decoder", nets.Parameter(()))() * z
            x = pg.sample("x", dist.Normal(loc, 1.0))
            read = {"z": z, "x": x, "nothing": 0.0 * pg.net("prior", nets.Parameter(()))()}[on]
            if through:  # NaN does not go through the comparison
                read = pg.deterministic("sign", ops.where(read > 0.0, 1.0, 0.0))
            pg.factor("pull", -0.5 * read * read)

    @model.with_guide
    def guided(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(pg.net("guide", nets.Parameter(()))() * x, 1.0))

    return guided


LEARNED = {
    "an energy as a prior": (lambda b: vae(ebm()), r"\['prior/energy'\]"),
    "a tilt of the data": (
        lambda b: Tilted(vae(LATENT), nets.MLPEnergy(hidden=(3,))),
        r"'tilt'.*'decoder'.*'energy'",
    ),
    "the prior under a fixed factor": (lambda b: pulled(learned_prior=True), r"\['prior'\]"),
    "a comparison": (lambda b: pulled(learned_prior=True, through=True), r"\['prior'\]"),
    "the decoder under a factor on x": (
        lambda b: pulled(learned_prior=False, on="x"),
        r"\['decoder'\]",
    ),
}
FIXED = {
    "a fitted energy as a prior": lambda b: vae(fitted_ebm(b)),
    "a decoder behind a fixed factor": lambda b: pulled(learned_prior=False),
    "a penalty": lambda b: pulled(learned_prior=False, on="nothing"),
}


def begin(b, model):
    """A learner's state before its first step."""
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    x = x if isinstance(model, VAE | Tilted) else x[:, 0]
    bound, params = bind(model, b, data={"x": x}, num_data=5)
    return SVI(ELBO()).bind(bound).init(params, b.key(0), {"x": b.asarray(x)})


@pytest.mark.parametrize("case", LEARNED)
def test_svi_refuses_to_learn_what_log_z_depends_on(b, case):
    """Before: an "elbo" of 10^7, growing with the steps."""
    make, match = LEARNED[case]
    with pytest.raises(AlgorithmError, match=f"SVI: log Z.*{match}.*MaximumLikelihood"):
        begin(b, make(b))


@pytest.mark.parametrize("case", FIXED)
def test_svi_learns_what_log_z_does_not_depend_on(b, case):
    assert begin(b, FIXED[case](b))["params"]


def test_a_fit_through_a_factor_says_that_its_elbo_is_not_nats(b, caplog):
    """log Z is in it; before, history and report showed it without a word."""
    x = np.random.default_rng(0).normal(size=5).astype(np.float32)
    options = {"num_steps": 2, "batch_size": 5, "seed": 0, "progress_bar": False}
    fitted = pg.fit(pulled(learned_prior=False), x, SVI(ELBO()), backend=b, **options)
    words = r"elbo is the bound on log p\(x\) plus log Z, which the factors \['pull'\] .*constant"
    assert re.search(words, fitted.history.events[0])
    for text in (repr(fitted.history), fitted.report.text(), caplog.text):
        assert re.search(words, text)


# ---- contrasts -----------------------------------------------------------------------------------


def scalar(name):
    return pg.net(name, nets.Parameter(()))()


@pg.model
def learned_edge():
    """Uniform(0, e^b) under an energy: d log p / d b = -1 but for x at the edge, in both means."""
    with pg.data_plate():
        x = pg.sample("x", dist.Uniform(0.0, ops.exp(scalar("edge"))))
        pg.factor("tilt", -scalar("energy") * x)


@pg.model
def shared_net():
    """The factor and the decoder read one net, whose likelihood needs the latent."""
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        x = pg.sample("x", dist.Normal(scalar("w") * z, 1.0))
        pg.factor("tilt", -scalar("w") * x)


@pg.model
def learned_scale():
    """Of a normal base; its support is the line whatever the scale."""
    with pg.data_plate():
        x = pg.sample("x", dist.Normal(0.0, ops.exp(scalar("scale"))))
        pg.factor("tilt", -scalar("energy") * x)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (learned_edge, "support of site 'x' .Uniform. ends where the net 'edge' says"),
        (shared_net, "law of site 'x' reads the net 'w'.*Tilted"),
        (learned_scale, None),
    ],
)
def test_a_contrast_is_refused_where_it_is_not_the_likelihoods_gradient(b, model, match):
    """Before: the edge got the gradient 0 for -1, the shared net that of the factor alone."""
    x = np.float32([0.2, 0.4, 0.6])
    bound, params = bind(model, b, data={"x": x}, num_data=3)
    learner = MaximumLikelihood(Langevin(0.1, num_steps=1)).bind(bound)
    start = (params, b.key(0), {"x": b.asarray(x)})
    if match is None:
        assert learner.init(*start)["params"]
        return
    with pytest.raises(AlgorithmError, match=f"MaximumLikelihood: the {match}"):
        learner.init(*start)
