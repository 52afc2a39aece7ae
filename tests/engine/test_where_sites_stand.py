"""Where a site stands and which axes its values have: data, `obs=`, and a guide's draws.

Minibatches are rows of the data plate, and only what stands in there is scaled to the whole set.
A value has its site's axes in full: none is stretched, so no datum counts twice.
"""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    ShapeError,
    SupportError,
)
from probgen.inference import ELBO, HMC, IWAE, SVI

N = 12
RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 2.0, N).astype(np.float32)
COVARIATE = np.linspace(-1, 1, N).astype(np.float32)
Y = (2 * COVARIATE + 0.1).astype(np.float32)
SHORT = HMC(num_warmup=100, num_samples=150, num_chains=1, num_steps=2, engine="probgen")


def guide():
    pg.sample("mu", dist.Normal(pg.net("a", nets.Parameter(()))(), 0.5))


def prior():
    return pg.sample("mu", dist.Normal(0, 10))


# ---- data with rows, outside the data plate ------------------------------------------------------


def in_its_own_plate():
    mu = prior()
    with pg.plate("rows", N):
        pg.sample("x", dist.Normal(mu, 2.0))


def as_one_event():
    pg.sample("x", dist.Normal(prior(), 2.0).expand([N]).to_event(1))


def bare():
    pg.sample("x", dist.Normal(prior(), 2.0))


@pytest.mark.parametrize("program", [in_its_own_plate, as_one_event, bare])
def test_fit_refuses_batches_of_what_is_observed_once(b, program):
    """Before: raw errors, or a posterior as wide as that of a minibatch."""
    model = pg.model(program).with_guide(guide)
    with pytest.raises(AlgorithmError, match=r"fit: got batch_size=4 .*pg\.data_plate\(\)"):
        pg.fit(model, X, SVI(ELBO()), num_steps=1, batch_size=4, seed=0, backend=b)


def test_evaluate_takes_one_value_by_all_of_it_and_refuses_rows_of_it(b):
    """A plate of N and one event of N have one bound; N rows of a scalar are no value of it."""
    how, found = {"seed": 0, "backend": b, "progress_bar": False}, []
    params = {"a": {"value": np.float32(1.0)}}
    for program in (in_its_own_plate, as_one_event):
        fitted = pg.Fitted(pg.model(program).with_guide(guide), params)
        found.append(pg.evaluate(fitted, X, [ELBO(5)], **how)["ELBO(5)"]["estimate"].values)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    with pytest.raises(
        ShapeError, match=r"expected \(\), since the site stands outside.*data_plate"
    ):
        pg.evaluate(pg.Fitted(pg.model(bare).with_guide(guide), params), X, [ELBO()], **how)


@pytest.mark.parametrize("size", ["all", "rows"])
def test_so_is_an_obs_with_rows(b, size):
    """Also where the plate takes its size from the batch, whose terms would not be scaled."""

    @pg.model
    def model(x):
        mu = prior()
        with pg.plate("rows", N if size == "all" else len(x)):
            pg.sample("y", dist.Normal(mu, 2.0), obs=x)

    with pytest.raises((AlgorithmError, ShapeError), match=r"pg\.data_plate\(\)"):
        pg.fit(
            model.with_guide(guide), {"x": X}, SVI(ELBO()), num_steps=1, batch_size=4, seed=0,
            backend=b,
        )  # fmt: skip


def test_a_value_that_is_not_made_of_rows_is_no_data(b):
    """One observation of the whole model beside the data: it counts once, and is not refused."""

    @pg.model
    def model():
        mu = prior()
        pg.sample("known", dist.Normal(mu, 1.0), obs=0.5)
        with pg.data_plate():
            pg.sample("x", dist.Normal(mu, 2.0))

    bound, _ = bind(model.with_guide(guide), b, data={"x": X}, num_data=N)
    bound.require_rows("fit")
    assert bound.latents == ("mu",)


# ---- all the data as one batch -------------------------------------------------------------------


def scale_of_a_vector():
    s = pg.sample("s", dist.HalfNormal(1.0))
    pg.sample("y", dist.Normal(0.0, s).expand([N]).to_event(1))


def scale_in_a_plate():
    s = pg.sample("s", dist.HalfNormal(1.0))
    with pg.plate("rows", N):
        pg.sample("y", dist.Normal(0.0, s))


def scale_of_data():
    s = pg.sample("s", dist.HalfNormal(1.0))
    with pg.data_plate():
        pg.sample("y", dist.Normal(0.0, s))


def one_scalar():
    s = pg.sample("s", dist.HalfNormal(1.0))
    pg.sample("y", dist.Normal(0.0, s))


def test_one_vector_is_the_same_as_its_rows_where_all_data_are_one_batch(b):
    """One density, declared three ways; and the density itself at a point, against scipy's."""
    found = []
    for program in (scale_of_a_vector, scale_in_a_plate, scale_of_data):
        bound, params = bind(pg.model(program), b, data={"y": Y}, whole=True)
        rows = {"y": b.asarray(Y)}
        sites = bound.trace(params, rows, {"s": b.asarray(np.float32(0.7))}, batch_size=N)
        found.append(float(b.ops.sum(sites["y"].log_prob)))
    exact = (-0.5 * (Y / 0.7) ** 2 - np.log(0.7 * np.sqrt(2 * np.pi))).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("y", [Y, Y[:1], Y[:, None]])
def test_a_scalar_site_takes_one_value(b, y):
    with pytest.raises(ShapeError, match=r"'y'.*expected \(\).*data_plate"):
        pg.infer(pg.model(one_scalar), {"y": y}, SHORT, seed=0, backend=b)


# ---- obs= ----------------------------------------------------------------------------------------


@pg.model
def regression(x, target):
    w = pg.sample("w", dist.Normal(0, 1))
    with pg.plate("rows", N):
        pg.sample("y", dist.Normal(w * x, 1.0), obs=target)


@pg.model
def regression_of_data(x, target):
    w = pg.sample("w", dist.Normal(0, 1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(w * x, 1.0), obs=target)


@pytest.mark.parametrize("model", [regression, regression_of_data])
@pytest.mark.parametrize("target", [Y[:, None], Y[:1], Y[0], np.stack([Y, Y])])
def test_an_obs_has_the_axes_of_its_site(b, model, target):
    """[N, 1] against N made N x N terms, and one value counted N times, in silence."""
    inputs = {"x": COVARIATE, "target": target}
    with pytest.raises(ShapeError, match=r"'y', obs=: got shape"):
        pg.infer(model, None, SHORT, inputs=inputs, seed=0, backend=b)


def native_regression(backend_name):
    """The regression as a native program, outside any plate, as such programs often are."""
    if backend_name == "jax":
        import numpyro
        import numpyro.distributions as nd

        def fn(x, target):
            w = numpyro.sample("w", nd.Normal(0.0, 1.0))
            numpyro.sample("y", nd.Normal(w * x, 1.0), obs=target)

        return pg.from_numpyro(fn)
    import pyro
    import pyro.distributions as pd

    def fn(x, target):
        w = pyro.sample("w", pd.Normal(0.0, 1.0))
        pyro.sample("y", pd.Normal(w * x, 1.0), obs=target)

    return pg.from_pyro(fn)


def test_a_native_obs_counts_each_value_once(b, backend_name):
    model = native_regression(backend_name)
    for target in (Y[:, None], Y[:1]):
        inputs = {"x": COVARIATE, "target": target}
        with pytest.raises(ShapeError, match=r"'y', obs=: got shape"):
            pg.infer(model, None, SHORT, inputs=inputs, seed=0, backend=b)
    constants = {"x": COVARIATE, "target": Y}
    bound, _ = bind(model, b, constants=constants, whole=True)
    assert bound.latents == ("w",)


OF_INPUTS = {"x": COVARIATE, "target": Y}


def test_the_data_plate_takes_its_size_from_inputs(b):
    """By obs= as by data: the density of w is that of every datum, each of which is told."""
    bound, params = bind(regression_of_data, b, constants=OF_INPUTS, whole=True)
    rows = {n: b.asarray(v) for n, v in OF_INPUTS.items()}
    point = Posterior(bound, bound.num_rows).point(params, rows, {"w": b.asarray(np.float32(0.7))})
    each = stats.norm.logpdf(Y, 0.7 * COVARIATE)
    np.testing.assert_allclose(b.to_numpy(point.log_likelihood["y"]), each, rtol=1e-5)
    want = each.sum() + stats.norm.logpdf(0.7)
    np.testing.assert_allclose(float(b.to_numpy(point.log_density)), want, rtol=1e-5)


@pytest.mark.repeated("test_the_data_plate_takes_its_size_from_inputs")
def test_a_chain_does_too(b):
    """The posterior mean of w is x.y / (1 + x.x)."""
    exact = (COVARIATE * Y).sum() / (1 + (COVARIATE**2).sum())
    draws = pg.infer(
        regression_of_data, None, SHORT, inputs=OF_INPUTS, seed=0, backend=b,
        log_likelihood=True, progress_bar=False,
    )  # fmt: skip
    assert draws["log_likelihood"]["y"].shape == (1, 150, N)
    assert abs(float(draws.posterior["w"].mean()) - exact) < 0.2


def test_nothing_tells_the_size_of_the_data_plate(b):
    @pg.model
    def model():
        pg.sample("y", dist.Normal(0.0, 1.0).expand([N]).to_event(1))
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="how many data|size of the batch"):
        pg.infer(model, {"y": Y}, SHORT, seed=0, backend=b)


def test_type_and_support_of_an_obs(b):
    @pg.model
    def waits(x):
        mu = pg.sample("mu", dist.HalfNormal(1.0))
        with pg.data_plate():
            pg.sample("t", dist.Exponential(mu), obs=x)

    waits = waits.with_guide(lambda: pg.sample("mu", dist.HalfNormal(1.0)))
    options = {"num_steps": 1, "seed": 0, "backend": b}
    with pytest.raises(SupportError, match="'t'"):
        pg.fit(waits, {"x": -np.abs(X)}, SVI(ELBO()), **options)
    with pytest.raises(DataError, match="'t'.*expected floats"):
        pg.fit(waits, {"x": np.arange(N)}, SVI(ELBO()), **options)


# ---- guides --------------------------------------------------------------------------------------


@pg.model
def local():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1))
        pg.sample("x", dist.Normal(z, 1.0))


@pg.model
def shared():
    z = pg.sample("z", dist.Normal(0, 1))
    with pg.data_plate():
        pg.sample("x", dist.Normal(z, 1.0))


@pg.model
def in_groups():
    with pg.data_plate(), pg.plate("group", 3):
        pg.sample("z", dist.Normal(0, 1))
    with pg.data_plate():
        pg.sample("x", dist.Normal(0.0, 1.0))


def outside():
    pg.sample("z", dist.Normal(0.5, 0.5))


def inside():
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.5, 0.5))


def in_two():
    with pg.data_plate(), pg.plate("theirs", 2):
        pg.sample("z", dist.Normal(0.5, 0.5))


def in_three():
    with pg.data_plate(), pg.plate("theirs", 3):
        pg.sample("z", dist.Normal(0.5, 0.5))


@pytest.mark.parametrize(
    "model, wrong, match",
    [
        (local, outside, "draws latent 'z' in no plate, expected the data plate.*data_plate"),
        (shared, inside, "draws latent 'z' in the data plate, expected no plate"),
        (in_groups, inside, "expected the data plate and plate 'group'"),
        (in_groups, in_two, "expected the data plate and plate 'group'"),
        (local, in_three, "expected the data plate, where"),
    ],
)
def test_a_guide_draws_a_latent_where_it_stands(b, model, wrong, match):
    """Before: one draw for all data gave an IWAE above log p(x), another on each backend."""
    with pytest.raises(ShapeError, match=match):
        bind(model.with_guide(wrong), b, data={"x": X})


@pytest.mark.parametrize(
    "model, right", [(local, inside), (shared, outside), (in_groups, in_three)]
)
def test_a_guide_that_stands_right_is_taken(b, model, right):
    """Also where its own plate bears another name."""
    bind(model.with_guide(right), b, data={"x": X})


def test_a_site_fixed_by_obs_is_not_taken_from_the_guide(b):
    """A guide that serves data with and without labels draws y; where y is given, y counts."""

    @pg.model
    def labelled(y):
        with pg.data_plate():
            pg.sample("y", dist.Normal(0.0, 1.0), obs=y)
            pg.sample("z", dist.Normal(0.0, 1.0))

    @labelled.with_guide
    def model(y):
        with pg.data_plate():
            pg.sample("y", dist.Normal(7.0, 1.0))
            pg.sample("z", dist.Normal(0.0, 1.0))

    bound, params = bind(model, b, data={"y": X})
    batch = {"y": b.asarray(X)}
    found = ELBO().evaluate(bound, params, batch, b.key(0))
    exact = np.mean(-0.5 * X**2 - 0.5 * np.log(2 * np.pi))
    assert float(found["elbo"]) == pytest.approx(exact, rel=1e-5)


# ---- supports ------------------------------------------------------------------------------------

SUPPORTS = [  # prior, guide, verdict
    (dist.Normal(0, 1), dist.Poisson(3.0), "discrete"),
    (dist.Bernoulli(0.5), dist.Normal(0, 1), "continuous"),
    (dist.Gamma(2.0, 1.0), dist.Normal(1.0, 1.0), "outside"),
    (dist.Uniform(0.0, 1.0), dist.Uniform(-1.0, 0.5), "outside"),
    (dist.Beta(2.0, 2.0), dist.Gamma(1.0, 1.0), "outside"),
    (dist.Dirichlet(np.ones(3)), dist.Normal(0, 1).expand([3]).to_event(1), "outside"),
    (dist.Normal(0, 1), dist.Gamma(2.0, 1.0), "smaller"),
    (dist.Normal(0, 1), dist.Uniform(-0.5, 0.5), "smaller"),
    (dist.HalfNormal(1.0), dist.Beta(2.0, 2.0), "smaller"),
    (dist.Normal(0, 1), dist.StudentT(4.0), "equal"),
    (dist.Gamma(2.0, 1.0), dist.LogNormal(0.0, 1.0), "equal"),
    (dist.Beta(2.0, 2.0), dist.Uniform(0.0, 1.0), "equal"),
    (dist.Uniform(-1.0, 1.0), dist.Uniform(-1.0, 1.0), "equal"),
    (dist.Normal(0, 1), dist.Delta(0.3), "equal"),
]


def with_latent(p, q):
    @pg.model
    def model():
        with pg.data_plate():
            z = pg.sample("z", p)
            pg.sample("x", dist.Normal(ops.sum(z, axis=-1) if p.name == "Dirichlet" else z, 1.0))

    @model.with_guide
    def guided(x):
        with pg.data_plate():
            pg.sample("z", q)

    return guided


@pytest.mark.parametrize(
    "p, q, verdict", SUPPORTS, ids=[f"{p.name}-{q.name}" for p, q, _ in SUPPORTS]
)
def test_a_guide_has_its_latents_support(b, p, q, verdict):
    model = with_latent(p, q)
    if verdict == "smaller":
        with pytest.warns(UserWarning, match="misses the posterior's mass"):
            bind(model, b, data={"x": X})
    elif verdict == "equal":
        bind(model, b, data={"x": X})
    else:
        words = {"outside": "not within that of the prior"}.get(verdict, f"from the {verdict}")
        with pytest.raises(SupportError, match=words):
            bind(model, b, data={"x": X})


def test_a_computed_bound_is_within_the_line_and_smaller(b):
    """A Uniform of learned ends has finite ones."""

    @local.with_guide
    def model(x):
        with pg.data_plate():
            pg.sample("z", dist.Uniform(x - 1.0, x + 1.0))

    with pytest.warns(UserWarning, match=r"Uniform, whose support \(\[\?, \?\]\) is smaller"):
        bind(model, b, data={"x": X})


@pytest.mark.filterwarnings("ignore:.*misses the posterior's mass")
def test_a_bound_that_misses_mass_says_so_in_the_table(b):
    fitted = pg.Fitted(with_latent(dist.Normal(0, 1), dist.Uniform(-0.5, 0.5)), {})
    table = pg.evaluate(fitted, X, [IWAE(3)], seed=0, backend=b, progress_bar=False)
    assert any("misses the posterior's mass" in w for w in table["IWAE(3)"].attrs["warnings"])


# ---- names ---------------------------------------------------------------------------------------


def test_sites_whose_names_a_result_cannot_tell_apart_are_refused(b):
    @pg.model
    def model():
        pg.sample("a/b", dist.Normal(0.0, 1.0))
        pg.sample("a.b", dist.Normal(5.0, 1.0))

    with pytest.raises(AlgorithmError, match=r"\['a\.b', 'a/b'\].*rename one"):
        pg.infer(model, None, SHORT, seed=0, backend=b)
