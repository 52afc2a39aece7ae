"""Arguments of distributions outside their domain: constants are refused, others never used.

Law: a constant outside its domain is refused when the program is bound, with the site, the
argument, its value and its domain; a computed one gives NaN in whatever is made of it, in every
run, and the error that ends the computation says which argument it was.
"""

import numpy as np
import pytest
from at_once import at_once, terms_of
from dist_cases import CASES, JAX_ONLY, TORCH_ONLY

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import DataError, DeclarationError, NonFiniteError, SupportError
from probgen.inference import ELBO, NUTS, SVI
from probgen.language import domains
from probgen.language.dist import SIGNATURES, Deferred, Family, signature

ASYMMETRIC = np.array([[1.0, 0.9], [0.0, 1.0]])
CONSTANTS = [
    (dist.Bernoulli(probs=1.5), r"Bernoulli\(probs=...\): got 1.5, expected numbers in \[0, 1\]"),
    (dist.Bernoulli(probs=-0.5), "got -0.5, expected numbers in"),
    (dist.Bernoulli(probs=np.array([0.5, np.nan])), r"got nan \(1 of 2 values\)"),
    (dist.Bernoulli(logits=np.inf), "got inf, expected finite numbers"),
    (dist.Gamma(-0.5, 1.0), r"concentration=...\): got -0.5, expected finite numbers above 0"),
    (dist.Beta(-0.5, 2.0), "concentration1"),
    (dist.Binomial(2, probs=1.5), "probs"),
    (dist.Binomial(-2, probs=0.5), r"total_count=...\): got -2., expected whole numbers"),
    (dist.Binomial(2.5, probs=0.5), "total_count"),
    (dist.Binomial(2**40, probs=0.5), "total_count"),
    (dist.VonMises(0.0, -1.0), "concentration"),
    (dist.Normal(np.nan, 1.0), "loc"),
    (dist.Normal(0.0, -1.0), "scale"),
    (dist.Normal(0.0, np.array([1.0, 0.0])).to_event(1), "scale"),
    (dist.Uniform(1.0, 1.0), "got low 1 and high 1, expected low below high"),
    (dist.Categorical(probs=np.array([1.5, -0.5])), "expected weights of at least 0"),
    (dist.Categorical(probs=np.zeros(2)), "not all of them 0"),
    (dist.MultivariateNormal(np.zeros(2), covariance_matrix=ASYMMETRIC), "symmetric positive"),
    (dist.MultivariateNormal(np.zeros(2), covariance_matrix=-np.eye(2)), "positive definite"),
    (dist.MultivariateNormal(np.zeros(2), scale_tril=ASYMMETRIC), "lower triangular"),
    (dist.MultivariateNormal(np.zeros(2), scale_tril=-np.eye(2)), "positive diagonal"),
    (dist.OrderedLogistic(0.0, np.array([1.0, 0.0])), "increase along the last axis"),
    (dist.ZeroInflatedPoisson(1.0, 1.5), "gate"),
    (
        dist.MixtureSameFamily(
            dist.Categorical(probs=np.ones(2)), dist.Normal(0.0, np.array([1.0, -1.0]))
        ),
        r"Normal\(scale=",
    ),
]


def model_of(declared):
    @pg.model
    def m():
        with pg.data_plate():
            pg.sample("x", declared)

    return m


@pytest.mark.parametrize("declared, words", CONSTANTS, ids=[str(d)[:60] for d, _ in CONSTANTS])
def test_a_constant_outside_its_domain_is_refused_when_the_program_is_bound(b, declared, words):
    with pytest.raises(DeclarationError, match=f"site 'x': .*{words}"):
        bind(model_of(declared), b)


def test_constants_at_the_ends_of_their_domains_are_taken(b):
    for declared in [
        dist.Bernoulli(probs=0.0), dist.Poisson(0.0), dist.Binomial(0, probs=1.0),
        dist.Categorical(probs=np.array([0.0, 1.0])), dist.Uniform(0.0, 1e-30),
    ]:  # fmt: skip
        bind(model_of(declared), b)


def test_every_argument_has_a_domain():
    """By name, or by family and name; `base_dist` and the like are looked into."""
    named = set(domains.BY_NAME) | {n for _, n in domains.BY_FAMILY}
    parts = {"base_dist", "mixing_distribution", "component_distribution"}
    written = {"Density", "ImproperUniform", "Transformed"}  # functions, words and shapes
    for family in set(SIGNATURES) - written:
        assert set(signature(family)) <= named | parts, family


OUTSIDE = {
    domains.POSITIVE: -0.5, domains.NOT_NEGATIVE: -0.5, domains.PROBABILITY: 1.5,
    domains.BETWEEN: 1.5, domains.STABILITY: 2.5, domains.SKEW: 1.5,
}  # fmt: skip


def broken_arguments(family, arguments):
    """(name, a value outside its domain) for each argument that may be computed."""
    for name, value in arguments.items():
        wanted = domains.domain(family, name)
        if isinstance(value, Deferred) or name in ("dim", "num_levels", "event_dim", "total_count"):
            continue
        if wanted is domains.WEIGHTS:
            yield name, np.asarray(value) * np.where(np.arange(len(value)) == 0, -1.0, 1.0)
        elif wanted in (domains.COVARIANCE, domains.FACTOR):
            yield name, value + np.triu(np.ones_like(value), 1)
            yield name, -value
        elif wanted is domains.ORDERED:
            yield name, value[::-1].copy()
        elif wanted._replace(nan_by_itself=False) in OUTSIDE:
            yield (
                name,
                np.full_like(
                    np.asarray(value, float), OUTSIDE[wanted._replace(nan_by_itself=False)]
                ),
            )


@pytest.mark.parametrize("family", [*CASES, *TORCH_ONLY, *JAX_ONLY])
def test_a_computed_argument_outside_its_domain_makes_the_density_nan(b, family):
    """Where the formula alone would give a number, as Gamma(-0.5, 1)'s or Bernoulli(1.5)'s does."""
    if family in (TORCH_ONLY if b.name == "jax" else JAX_ONLY):
        pytest.skip(f"{family} is not a distribution of {b.name}")
    arguments = CASES[family].arguments if family in CASES else {**TORCH_ONLY, **JAX_ONLY}[family]
    broken = list(broken_arguments(family, arguments))
    if not broken or family == "Stable":  # Pyro has no density of it
        pytest.skip("no argument of it may be computed and be outside a domain")
    values = CASES[family].values[:1] if family in CASES else np.array([0.5])
    if family == "OneHotCategorical":
        values = np.eye(3)[:1]
    kind = "int32" if family in ("Categorical", "OrderedLogistic") else "float32"
    given = b.asarray(values, kind)

    def run(learned):
        found = []
        for (name, _), value in zip(broken, learned, strict=True):

            def program(name=name, value=value):
                with pg.data_plate():
                    pg.sample("x", Family(family)(**{**arguments, name: value}))

            found.append(b.trace(program, {}, values={"x": given}, batch_size=1)["x"].log_prob)
        return found

    learned = [b.asarray(v.astype(np.float32)) for _, v in broken]
    if (
        family == "LowRankMultivariateNormal" and b.name == "torch"
    ):  # Pyro factorises where it is built
        with pytest.raises(DeclarationError, match="(?s)site 'x'.*not positive-definite"):
            run(learned)
        return
    got = [b.to_numpy(x) for x in b.compile(run, num_calls=1)(learned)]
    assert np.isnan(got).all(), list(zip([n for n, _ in broken], got, strict=True))


def test_a_divergence_of_a_scale_below_zero_is_nan(b):
    """By (scale / scale)^2 alone it would be the number that |scale| has."""

    def fn_of(scale):
        def program():
            with pg.data_plate():
                pg.sample("z", dist.Normal(0.25, scale).expand([2]).to_event(1))

        z = b.asarray(np.zeros((1, 2), np.float32))
        return b.trace(program, {}, values={"z": z}, batch_size=1)["z"].fn

    def run(scales):
        wrong, right, prior = (fn_of(scales[i]) for i in range(3))
        pairs = ((wrong, prior), (prior, wrong), (right, prior))
        return [b.kl_divergence(q, p) for q, p in pairs]

    of_wrong, to_wrong, found = at_once(b, run, b.asarray(np.float32([-0.5, 0.5, 2.0])))
    assert np.isnan(of_wrong).all() and np.isnan(to_wrong).all()
    want = 2 * (0.5 * (0.0625 - 1.0) + np.log(4.0))
    np.testing.assert_allclose(found, [want], rtol=1e-6)


@pg.model
def learned_concentration():
    """The likeliest concentration of values near 0 is near 0: a step too long goes below it."""
    a = pg.net("a", nets.Parameter(()))()
    with pg.data_plate():
        pg.sample("x", dist.Gamma(a + 0.25, 1.0))


@learned_concentration.with_guide
def learned_concentration():
    """Nothing to draw."""


TINY = np.full(8, 1e-6, np.float32)


def test_the_guard_says_which_learned_argument_left_its_domain(b):
    """log p of Gamma(-9.3, 1) is a finite number by its formula."""
    with pytest.raises(
        NonFiniteError,
        match=r"log_prob/x at step \d+ is NaN.*site 'x' of the model: "
        r"Gamma\(concentration=...\): got -\d+\.\d+, expected finite numbers above 0; .*ops.exp",
    ):
        pg.fit(
            learned_concentration, TINY, SVI(ELBO(), pg.SGD(1.0)), num_steps=40, batch_size=8,
            seed=0, backend=b, max_retries=0,
        )  # fmt: skip


@pg.model
def computed_scale(covariate):
    with pg.data_plate():
        pg.sample("x", dist.Gamma(2.0, covariate))


@computed_scale.with_guide
def computed_scale():
    """Nothing to draw."""


def test_a_computed_argument_is_found_at_the_first_step_and_by_evaluate(b):
    x, good = np.ones(6, np.float32), np.ones(6, np.float32)
    bad = good.copy()
    bad[4] = -2.0
    words = r"site 'x' of the model: Gamma\(rate=...\): got -2"
    options = {"num_steps": 1, "batch_size": 6, "seed": 0, "backend": b}
    with pytest.raises(NonFiniteError, match=f"step 0 is NaN or infinite; {words}"):
        pg.fit(computed_scale, x, SVI(ELBO()), inputs={"covariate": bad}, **options)
    fitted = pg.fit(computed_scale, x, SVI(ELBO()), inputs={"covariate": good}, **options)
    with pytest.raises(NonFiniteError, match=f"datum 4.*{words}"):
        pg.evaluate(fitted, x, [ELBO(num_particles=2)], inputs={"covariate": bad}, seed=0)


@pg.model
def discrete(rate):
    with pg.data_plate():
        pg.sample("x", dist.Poisson(rate))


def test_discrete_draws_of_an_argument_outside_its_domain_are_refused(b):
    """A count cannot be NaN: JAX draws -1 for one, torch raises in its own words."""
    options = {"num_steps": 1, "batch_size": 3, "seed": 0, "backend": b}
    rate = np.array([0.5, 1.5, 0.5], np.float32)
    m = discrete.with_guide(lambda: None)
    fitted = pg.fit(m, np.ones(3, np.float32), SVI(ELBO()), inputs={"rate": rate}, **options)
    assert (pg.generate(fitted, 3, seed=0, inputs={"rate": rate})["x"] >= 0).all()
    words = r"generate: .*site 'x' of the model: Poisson\(rate=...\): got -1.5 \(1 of 3 values\)"
    with pytest.raises(NonFiniteError, match=words):
        pg.generate(fitted, 3, seed=0, inputs={"rate": -rate * [-1, 1, -1]})


@pg.model
def counted():
    rate = pg.sample("rate", dist.Gamma(2.0, 0.1))
    with pg.data_plate():
        pg.sample("x", dist.Poisson(rate))


def test_integers_that_the_device_does_not_hold_are_refused_and_others_are_not_changed(b):
    """2^32 + 7 is not 7."""
    short = NUTS(num_warmup=1, num_samples=1, num_chains=1)
    data = {"x": np.array([2**32 + 7])}
    if b.name == "jax":
        with pytest.raises(DataError, match=r"data 'x': got the integer 4294967303, expected"):
            pg.infer(counted, data, short, seed=0, backend=b, progress_bar=False)
        with pytest.raises(DataError, match="got the integer -2147483649"):
            b.asarray(np.array([-(2**31) - 1]))
    else:
        assert b.to_numpy(b.asarray(data["x"])).tolist() == [2**32 + 7]
        with pytest.raises(DataError, match="got the integer 18446744073709551615"):
            b.asarray(np.array([2**64 - 1], np.uint64))
    fine = np.array([-(2**31), 2**31 - 1])
    np.testing.assert_array_equal(b.to_numpy(b.asarray(fine)), fine)


def test_a_multinomial_row_that_misses_its_count_is_outside_the_support(b):
    m = model_of(dist.Multinomial(5, probs=np.ones(2)))
    with pytest.raises(SupportError, match="'x': 1 of 2 events lie outside"):
        pg.fit(
            m.with_guide(lambda: None), np.array([[2.0, 2.0], [3.0, 2.0]], np.float32),
            SVI(ELBO()), num_steps=1, batch_size=2, seed=0, backend=b,
        )  # fmt: skip


def test_a_value_at_an_edge_is_taken_where_its_density_is_finite(b):
    """0 under Gamma(1, 2) has the density 2; under Gamma(2, 2) it has none."""
    options = {"num_steps": 1, "batch_size": 2, "seed": 0, "backend": b}
    x = np.array([0.0, 1.0], np.float32)
    m = model_of(dist.Gamma(1.0, 2.0)).with_guide(lambda: None)
    fitted = pg.fit(m, x, SVI(ELBO()), **options)
    np.testing.assert_allclose(fitted.history["elbo"][0], np.log(2.0) - 1.0, rtol=1e-6)
    m = model_of(dist.Gamma(2.0, 2.0)).with_guide(lambda: None)
    with pytest.raises(SupportError, match="'x': 1 of 2 data have a value at the edge.*is 0"):
        pg.fit(m, x, SVI(ELBO()), **options)


@pg.model
def correlated(tril):
    pg.sample("x", dist.MultivariateNormal(0 * tril[0], scale_tril=tril))


@pg.model
def waiting(rate):
    with pg.data_plate():
        pg.sample("y", dist.Gamma(2.0, rate))


def test_an_input_all_of_which_is_here_is_looked_at_once(b):
    """What `infer` is given is refused when the program is bound, and no run looks again."""
    chains = NUTS(num_warmup=5, num_samples=5, num_chains=1)
    options = {"seed": 0, "backend": b, "progress_bar": False}
    factor = np.array([[1.0, 0.0], [0.5, 2.0]], np.float32)
    with pytest.raises(DeclarationError, match=r"'x': MultivariateNormal\(scale_tril=...\)"):
        pg.infer(correlated, {}, chains, inputs={"tril": factor.T}, **options)
    rates = np.array([1.0, 2.0, -1.0], np.float32)
    with pytest.raises(DeclarationError, match=r"got -1. \(1 of 3 values\)"):
        pg.infer(waiting, {"y": np.ones(3, np.float32)}, chains, inputs={"rate": rates}, **options)
    bound, params = bind(correlated, b, constants={"tril": factor}, whole=True)
    assert bound.held == {"tril"}
    # The mark goes with the value: another one under that name is looked at in the run.
    at = {"x": b.asarray(np.zeros(2, np.float32))}
    for batch, is_nan in (({}, False), ({"tril": b.asarray(-factor)}, True)):
        value = bound.trace(params, batch, at, batch_size=1)["x"].log_prob
        assert bool(np.isnan(b.to_numpy(value)).any()) == is_nan


def test_rows_of_a_batch_are_looked_at_in_every_run(b):
    """`bind` has seen one datum of them, or zeros in their place."""
    rows = {"rate": np.ones(1, np.float32), "y": np.ones(1, np.float32)}
    bound, params = bind(waiting, b, data=rows)
    assert not bound.held
    later = {k: b.asarray(np.array([1.0, s], np.float32)) for k, s in (("rate", -1.0), ("y", 1.0))}
    _, found = terms_of(b, bound.trace, params, later)["y"]
    assert np.isfinite(found[0]) and np.isnan(found[1])
