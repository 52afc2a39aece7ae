"""Likelihood regret of guides of every kind, and what it refuses.

A guide whose draws are no functions of normal noise (Gamma) or that has further latents is scored
one datum at a time where it must be; the numbers do not depend on how the data are cut.
"""

import math

import numpy as np
import pytest
from floats import float64
from regret_cases import PPCA

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError, NonFiniteError, ProbgenError
from probgen.inference.regret.likelihood_regret import LikelihoodRegret
from probgen.models import EBM, VAE, Generator, likelihoods
from probgen.trees import tree_map

X = np.random.default_rng(0).gamma(2.0, size=(7, 2)).astype(np.float32)


def story(family):
    """x | z ~ N(z, 0.3^2) for a positive z; the guide's parameters come from a net of x."""

    @pg.model
    def positive():
        with pg.data_plate():
            z = pg.sample("z", dist.Gamma(2.0, 1.0))
            mean = ops.stack([z, z], axis=-1)
            pg.sample("x", dist.Normal(mean, 0.3).to_event(1))

    @positive.with_guide
    def guided(x):
        with pg.data_plate():
            h = pg.net("guide", nets.MLP(hidden=(4,), out=(), heads=("a", "b")))(x)
            if family == "FoldedDistribution":
                q = dist.FoldedDistribution(dist.Normal(h["a"], ops.softplus(h["b"]) + 0.1))
            elif family == "Gamma":
                q = dist.Gamma(ops.softplus(h["a"]) + 1.0, ops.softplus(h["b"]) + 0.5)
            else:
                q = dist.LogNormal(h["a"], ops.softplus(h["b"]) + 0.1)
            pg.sample("z", q)

    return guided


def fitted_of(b, model, x, seed=0):
    _, params = bind(model, b, data={"x": x[:1]}, seed=seed)
    return Fitted(model, tree_map(b.to_numpy, params), shapes={"x": x.shape[1:]})


def scored(b, fitted, x, measure, *, chunk_size=100, **options):
    table = pg.evaluate(
        fitted, x, [measure], seed=0, backend=b, chunk_size=chunk_size, progress_bar=False,
        **options,
    )  # fmt: skip
    return {n: v.values for n, v in table[measure.name].data_vars.items()}


AGAIN = np.concatenate([X, X[:1], X[:1]])
ONE_BY_ONE = {"num_steps": 50, "num_draws": 20, "optimizer": pg.Adam(5e-2)}
OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in ("Gamma", "LogNormal")]


@pytest.mark.parametrize("family", ["FoldedDistribution", *OTHERS])
def test_a_guide_that_is_no_function_of_noise_is_taken_one_by_one(b, family):
    """Each datum with its own noise; and the search gains: from random weights the bound rises for
    nearly all data."""
    found = scored(b, fitted_of(b, story(family), X), AGAIN, LikelihoodRegret(**ONE_BY_ONE))
    assert (found["estimate"] > 0).mean() > 0.8 and found["estimate"].mean() > 0.3
    assert len(np.unique(found["elbo_before"][[0, 7, 8]])) == 3  # the same datum three times


@pytest.mark.repeated("test_regret_batched.py::test_no_cut_of_the_data_changes_a_number")
def test_no_cut_of_the_data_changes_what_is_taken_one_by_one(b):
    fitted = fitted_of(b, story("FoldedDistribution"), X)
    one, other = (
        scored(b, fitted, AGAIN, LikelihoodRegret(**ONE_BY_ONE, rows_at_once=rows), chunk_size=size)
        for rows, size in ((None, 100), (1, 3))
    )
    for name, values in other.items():
        np.testing.assert_allclose(values, one[name], rtol=2e-3, atol=2e-3, err_msg=name)


# The nets of a full guide are searched as those of any other.
@pytest.mark.repeated("test_regret_gaps.py::test_a_known_gap_is_the_regret")
def test_a_full_covariance_guide_closes_its_gap(b):
    """search="guide" of a full-covariance encoder at random weights: near log p(x) in the end,
    where the diagonal guide's best bound stays below by its closed form."""
    model = PPCA(num_values=5, num_units=2)
    x = model.draw(6).astype(np.float32)
    vae = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(5,)),
        likelihood=likelihoods.Normal(scale=math.sqrt(model.s2)),
        encoder=nets.MLP(hidden=(), out=2),
        guide_kind="full",
    )
    fitted = fitted_of(b, vae, x)
    weights = {"weight": model.w.T, "bias": model.c}
    fitted.params["decoder"]["out"] = tree_map(lambda a: np.asarray(a, np.float32), weights)
    measure = LikelihoodRegret(
        num_steps=600, num_draws=200, optimizer=pg.Adam(pg.CosineDecay(3e-2, 600))
    )
    found = scored(b, fitted, x, measure)
    best_diagonal = model.log_prob(x) - model.kl(x, model.posterior_mean(x), model.best_variance)
    assert np.abs(found["elbo_after"] - model.log_prob(x)).max() < 0.1
    assert (found["elbo_after"] > best_diagonal + 0.05).all()


def hierarchy():
    def net(out, hidden=(), **more):
        return nets.MLP(hidden=hidden, out=out, activation="tanh", **more)

    heads = ("loc", "log_scale")
    top = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1), decoder=net((3,)),
        likelihood=likelihoods.Normal(scale=0.7), encoder=net(2, heads=heads),
    )  # fmt: skip
    return VAE(
        latent=top, decoder=net((5,), (6,)), likelihood=likelihoods.Normal(scale=0.4),
        encoder=net(3, heads=heads),
    )  # fmt: skip


# Free Gaussians of every level gain there, on both backends; here it is the nets of the guide.
@pytest.mark.repeated("test_regret_backends.py::test_backends_agree_for_the_same_weights_and_noise")
def test_a_hierarchy_is_searched_at_every_level(b):
    """z and prior/z both: the bound rises far, by the top level's guide too."""
    x = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    fitted = fitted_of(b, hierarchy(), x)
    measure = LikelihoodRegret("guide", num_steps=150, num_draws=20, optimizer=pg.Adam(3e-2))
    found = scored(b, fitted, x, measure)
    assert found["estimate"].min() > 0 and found["estimate"].mean() > 5


@pytest.mark.repeated("test_regret_batched.py::test_no_cut_of_the_data_changes_a_number")
def test_no_cut_of_the_data_changes_the_regret_of_a_hierarchy(b):
    """Each datum has its own noise at every level: to 1e-9 in float64. The bound rises far."""
    x = np.random.default_rng(1).normal(size=(6, 5))
    fitted = fitted_of(b, hierarchy(), x.astype(np.float32))
    measure = LikelihoodRegret("posterior", num_steps=150, num_draws=20, optimizer=pg.Adam(3e-2))
    with float64(b):
        whole, parts = (scored(b, fitted, x, measure, chunk_size=size) for size in (100, 3))
    assert np.ptp(whole["elbo_before"]) > 0.1
    assert whole["estimate"].min() > 0 and whole["estimate"].mean() > 5
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


# ---- what is refused ----------------------------------------------------------------------------


def vae(likelihood=None, **options):
    given = {
        "latent": dist.Normal(0, 1).expand([2]).to_event(1),
        "decoder": nets.MLP(hidden=(4,), out=(2,)),
        "likelihood": likelihood or likelihoods.Normal(scale=0.5),
        "encoder": nets.MLP(hidden=(4,), out=2, heads=("loc", "log_scale")),
    }
    return VAE(**{**given, **options})


@pg.model
def with_global():
    top = pg.sample("top", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        pg.sample("x", dist.Normal(z + top, 1.0).to_event(1))


@with_global.with_guide
def with_global(x):
    pg.sample("top", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        loc = pg.net("loc", nets.MLP(hidden=(), out=2))(x)
        pg.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pg.model
def without_nets():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        pg.sample("x", dist.Normal(z, 1.0).to_event(1))


@without_nets.with_guide
def without_nets(x):
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.5 * x, 0.7).to_event(1))


def without_guide():
    v = vae()
    return Generator(v.latent, v.decoder, v.likelihood)


GUIDE, POSTERIOR = LikelihoodRegret(num_steps=2), LikelihoodRegret("posterior", num_steps=2)
RANK_1 = LikelihoodRegret(num_steps=2, rank_1=True)


@pytest.mark.parametrize(
    ("model", "measure", "text"),
    [
        (without_guide, GUIDE, r"has no guide.*expected one.*encoder"),
        (without_guide, POSTERIOR, r"has no guide.*expected one.*encoder"),
        (
            lambda: EBM(nets.MLPEnergy(hidden=(4,)), dist.Normal(0, 1).expand([2]).to_event(1)),
            GUIDE,
            r"known up to a constant.*expected a normalised one",
        ),
        (lambda: with_global, GUIDE, r"outside the data plate.*expected local"),
        (lambda: with_global, POSTERIOR, r"outside the data plate.*expected"),
        (lambda: without_nets, GUIDE, r'no networks.*expected some.*search="posterior"'),
        (lambda: story("Gamma"), POSTERIOR, r'expected.*(Gaussian|Normal|noise)'),
        (lambda: vae(guide_kind="full"), POSTERIOR, r'independent Gaussians.*search="guide"'),
        (hierarchy, RANK_1, r"rank_1=True.*expected a VAE.*leave rank_1 out"),
        (lambda: without_nets, RANK_1, r"rank_1=True.*expected a VAE"),
    ],
)  # fmt: skip
def test_models_that_the_search_does_not_fit_are_refused_in_words(b, model, measure, text):
    declared = model()
    x = np.ones((3, 5 if model is hierarchy else 2), np.float32)
    with pytest.raises(AlgorithmError, match=f"(?s){text}"):
        scored(b, fitted_of(b, declared, x), x, measure)


def test_a_full_covariance_guide_of_levels_is_refused_for_a_free_posterior(b):
    """Also where the data are integers, which must not become the noise's type."""
    declared = vae(likelihoods.Categorical(4), guide_kind="full")
    x = np.ones((3, 2), np.int64)
    with pytest.raises(AlgorithmError, match="independent Gaussians"):
        scored(b, fitted_of(b, declared, x), x, POSTERIOR)


@pytest.mark.repeated(
    "test_regret_closed_form.py::test_the_search_finds_the_best_gaussian_of_a_saturating_encoder"
)
def test_a_search_without_nets_is_possible_for_the_posterior(b):
    """q = N(x/2, 0.7^2) for the posterior N(x/2, 1/2): the gap is 0.0205 nats, as is the regret."""
    gap = 2 * 0.5 * (0.49 * 2 - 1 - math.log(0.49 * 2))
    fitted = Fitted(without_nets, {}, shapes={"x": (2,)})
    measure = LikelihoodRegret(
        "posterior", num_steps=500, num_draws=200, optimizer=pg.Adam(pg.CosineDecay(3e-2, 500))
    )
    found = scored(b, fitted, X, measure)
    off = found["estimate"] - gap
    assert abs(off.mean()) < 0.02 + 5 * off.std() / math.sqrt(len(X))


@pytest.mark.parametrize(
    ("options", "draws"),
    [
        ({}, 100),
        ({"num_particles": 8}, 104),
        ({"num_particles": 30, "num_particles_before": 20}, 120),
        ({"num_particles": 1000}, 1000),
    ],
)
def test_draws_are_whole_groups_of_both_k_unless_given(options, draws):
    assert LikelihoodRegret(**options) == LikelihoodRegret(**options, num_draws=None)
    named = LikelihoodRegret(**options, num_draws=draws)
    assert named.name == LikelihoodRegret(**options).name
    assert f"{2 * draws} draws" in LikelihoodRegret(**options, num_draws=2 * draws).name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"search": "encoder"}, r"search='encoder', expected one of 'guide', 'posterior'"),
        ({"noise": "shared"}, r"noise='shared', expected one of 'common', 'independent'"),
        ({"start_from": "zero"}, r"start_from='zero', expected one of 'guide', 'prior'"),
        (
            {"start_from": "prior"},
            r"search='guide', start_from='prior', expected search=.posterior",
        ),
        ({"search": "posterior", "rank_1": True}, r"search='posterior', rank_1=True, expected no"),
        ({"num_particles": 7, "num_draws": 100}, r"num_draws=100.*multiple of K=7"),
        ({"num_particles_before": 3, "num_draws": 100}, r"num_draws=100.*multiple of K=3"),
        ({"num_steps": 0}, "whole number of at least 1"),
        ({"particles_at_once": 0}, "whole number of at least 1"),
        ({"num_particles": -1}, "whole number of at least 1"),
        ({"num_draws": -100}, "whole number of at least 1"),
        ({"rows_at_once": -1}, "whole number of at least 1"),
        ({"rows_at_once": 0}, "whole number of at least 1"),
        ({"num_draws": 0}, "whole number of at least 1"),
        ({"num_particles": 0}, "whole number of at least 1"),
        ({"num_particles_before": 0}, "whole number of at least 1"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, text):
    with pytest.raises(DeclarationError, match=text):
        LikelihoodRegret(**options)


def test_the_presets_are_what_their_sources_say():
    """Defaults of each search, and of the published code: 100 steps, K = 1000, new noise."""
    published = LikelihoodRegret.as_published()
    assert published.steps == 100 and published.noise == "independent"
    assert published._counts == (1000, 1000, 1000) and published.search == "guide"
    assert LikelihoodRegret.as_published(num_particles=10).num_particles == 10
    assert LikelihoodRegret(search="posterior").steps == 300
    assert LikelihoodRegret()._counts == (1, 1, 100)
    names = {
        LikelihoodRegret().name,
        LikelihoodRegret("posterior").name,
        LikelihoodRegret(rank_1=True).name,
        LikelihoodRegret(num_particles=10).name,
        LikelihoodRegret(num_particles=10, num_particles_before=5).name,
    }
    assert len(names) == 5 and not any("/" in n for n in names)


def test_a_search_that_runs_away_is_an_error_that_names_the_datum(b):
    fitted = Fitted(without_nets, {}, shapes={"x": (2,)})
    measure = LikelihoodRegret("posterior", num_steps=30, optimizer=pg.SGD(1e6))
    with pytest.raises((NonFiniteError, ProbgenError), match="NaN for .* data, the first is datum"):
        scored(b, fitted, X, measure)


def test_an_unfinished_search_is_said_so(b):
    """The warning counts the data whose last tenth of steps still gained much."""
    linear = {
        "decoder": nets.MLP(hidden=(), out=(2,)),
        "encoder": nets.MLP(hidden=(), out=2, heads=("loc", "log_scale")),
    }
    fitted = fitted_of(b, vae(**linear), X)
    measure = LikelihoodRegret("posterior", num_steps=5, num_draws=20, optimizer=pg.Adam(5e-2))
    table = pg.evaluate(fitted, X * 3, [measure], seed=0, backend=b, progress_bar=False)
    _, text = table.warnings[measure.name]
    late, found = (table[measure.name][q].values for q in ("late_gain", "regret_elbo"))
    count = int(((late > 0.1 * np.abs(found)) & (late > 0.1)).sum())
    assert count > 0 and f"for {count} of 7 data" in text
